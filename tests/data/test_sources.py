"""Where rows come from: the order, what is passed over, what is an error, and that nothing trains on a test split."""

import gzip
import json
import socket

import datasets
import pytest

from forgelib.data import CATALOGUE, DataError, Hub
from forgelib.data.prepare import load_rows
from forgelib.data.sources import HubError, is_cut, probe, split_plan

ROW = {"question": "What is 2 + 3?", "answer": "Two and three make <<2+3=5>>5.\n#### 1,005"}


@pytest.fixture(autouse=True)
def no_mirror_of_the_machine(monkeypatch):
    monkeypatch.delenv("FORGE_DATASETS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def mirror(tmp_path):
    return tmp_path / "mirror"


def write(mirror, name, split, rows):
    path = mirror / name / f"{split}.jsonl.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def numbered(n):
    return [{"question": f"What is {k}?", "answer": f"It is so.\n#### {k}"} for k in range(n)]


def test_the_mirror_comes_first(mirror):
    write(mirror, "gsm8k", "train", [ROW])
    rows = load_rows("gsm8k", "train" if not is_cut("Question: What is 2 + 3?\nAnswer:") else "heldout", mirror=mirror)
    (example,) = rows.examples
    assert (rows.source, rows.origin) == ("mirror", "gsm8k/train.jsonl.gz")
    assert example.prompt == "Question: What is 2 + 3?\nAnswer:" and example.answer == "1005"
    assert example.reasoning == "Two and three make 5."


def test_the_mirror_named_by_the_environment_is_found(mirror, monkeypatch):
    write(mirror, "gsm8k", "train", [ROW])
    monkeypatch.setenv("FORGE_DATASETS", str(mirror))
    assert load_rows("gsm8k", "train").source == "mirror"
    assert load_rows("gsm8k", "train", source="procedural", limit=3).source == "procedural"


def test_openwebtext_rows_written_here_are_read(mirror):
    write(
        mirror, "openwebtext", "train", [{"text": f"Page {k}: the tide came in.\n\nIt went out."} for k in range(200)]
    )
    train, heldout = (load_rows("openwebtext", part, source="real", mirror=mirror) for part in ("train", "heldout"))
    assert len(train.examples) + len(heldout.examples) == 200
    assert 5 <= len(heldout.examples) <= 45
    assert train.examples[0].answer == "" and train.examples[0].text.startswith("Page ")


def test_lines_of_a_wikitext_article_are_joined(mirror):
    lines = ["", " = Ant = \n", " An ant is small . \n", " = = Nests = = \n", " = Bee = \n", "\n", " A bee hums . \n"]
    write(mirror, "wikitext-2-raw-v1", "train", [{"text": line} for line in lines])
    write(mirror, "wikitext-2-raw-v1", "validation", [{"text": " A line . \n"}])
    texts = sorted(example.text for example in load_rows("wikitext", "train", mirror=mirror).examples)
    assert texts == [" = Ant = \n An ant is small . \n = = Nests = = \n", " = Bee = \n\n A bee hums . \n"]


def test_train_and_heldout_rows_never_meet(mirror):
    write(mirror, "gsm8k", "train", numbered(500))
    train, heldout = (
        {e.prompt for e in load_rows("gsm8k", part, mirror=mirror).examples} for part in ("train", "heldout")
    )
    assert not train & heldout and len(train) + len(heldout) == 500
    assert 25 <= len(heldout) <= 80


def test_questions_on_one_passage_stay_on_one_side():
    prompts = [f"Passage: {p}\nQuestion: {q}\nAnswer:" for p in range(50) for q in range(3)]
    sides = [[is_cut(prompts[3 * p + q]) for q in range(3)] for p in range(50)]
    assert all(len(set(side)) == 1 for side in sides) and any(side[0] for side in sides)


@pytest.mark.parametrize(
    "available, train, heldout",
    [
        ({"train", "validation", "test"}, ("train", "all"), ("validation", "all")),
        ({"train", "test"}, ("train", "keep"), ("train", "cut")),
        ({"validation", "test"}, ("validation", "keep"), ("validation", "cut")),
        ({"train"}, ("train", "keep"), ("train", "cut")),
    ],
)
def test_the_test_split_is_neither_trained_on_nor_held_out(available, train, heldout):
    assert split_plan("train", available) == train
    assert split_plan("heldout", available) == heldout


def test_no_dataset_plans_to_read_its_test_split():
    for spec in CATALOGUE.values():
        assert "test" not in {split_plan(part, spec.splits)[0] for part in ("train", "heldout")}


def test_a_folder_with_a_test_split_only_is_refused(mirror):
    write(mirror, "gsm8k", "test", [ROW])
    with pytest.raises(DataError, match="never trained on"):
        load_rows("gsm8k", "train", mirror=mirror)
    assert len(load_rows("gsm8k", "test", mirror=mirror).examples) == 1


def test_a_limit_takes_a_seeded_sample(mirror):
    write(mirror, "gsm8k", "train", numbered(300))
    first, again, other = (load_rows("gsm8k", "train", mirror=mirror, limit=20, seed=s).examples for s in (0, 0, 1))
    assert first == again and first != other and len(first) == 20


BROKEN = {
    "truncated": (lambda raw: raw[: len(raw) // 2], "truncated"),
    "not gzip": (lambda raw: b"question,answer\n", "not a sound gzip file"),
    "damaged inside": (lambda raw: raw[:40] + bytes([raw[40] ^ 255]) + raw[41:], "gzip|truncated|UTF-8|not JSON"),
    "not UTF-8": (lambda raw: gzip.compress(b'{"question": "\xff", "answer": "#### 1"}\n'), "not UTF-8"),
    "not JSON": (lambda raw: gzip.compress(gzip.decompress(raw) + b"{'question': 1}\n"), "line 51: not JSON"),
    "a list": (lambda raw: gzip.compress(b"[1, 2]\n"), "line 1.*must be an object"),
    "missing field": (lambda raw: gzip.compress(b'{"question": "a"}\n'), "line 1.*'answer' is missing"),
    "wrong type": (
        lambda raw: gzip.compress(b'{"question": 7, "answer": "#### 1"}\n'),
        "line 1.*'question' must hold str",
    ),
    "no final number": (
        lambda raw: gzip.compress(b'{"question": "a", "answer": "one"}\n'),
        "'answer' has no final number",
    ),
    "no finite number": (lambda raw: gzip.compress(b'{"question": "a", "answer": "#### nan"}\n'), "must be a number"),
    "a word for a number": (lambda raw: gzip.compress(b'{"question": "a", "answer": "#### x"}\n'), "must be a number"),
    "empty": (lambda raw: gzip.compress(b""), "no rows"),
    "zero bytes": (lambda raw: b"", "no rows"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("source", ["auto", "real"])
def test_a_broken_file_is_named_and_never_passed_over(mirror, case, source):
    path = write(mirror, "gsm8k", "train", numbered(50))
    damage, message = BROKEN[case]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load_rows("gsm8k", "train", source=source, mirror=mirror)
    assert str(path) in str(caught.value)


def test_nested_and_listed_fields_are_named(mirror):
    row = {"question": "q", "answerKey": "A", "choices": {"text": ["x", 3], "label": ["A", "B"]}}
    write(mirror, "arc_easy", "train", [row])
    with pytest.raises(DataError, match=r"line 1: field 'choices.text' must hold str, not int \('3'\)"):
        load_rows("arc_easy", "train", mirror=mirror)
    row["choices"] = {"text": ["x"]}
    write(mirror, "arc_easy", "train", [row])
    with pytest.raises(DataError, match=r"'choices.label' is missing"):
        load_rows("arc_easy", "train", mirror=mirror)


def test_a_mirror_that_is_no_folder_is_refused(mirror):
    with pytest.raises(DataError, match="FORGE_DATASETS"):
        load_rows("gsm8k", "train", mirror=mirror)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("gsm9k", "train", {}), "there is no dataset 'gsm9k'"),
        (("gsm8k", "dev", {}), "there is no part 'dev'"),
        (("gsm8k", "train", {"source": "hub"}), "auto, real, procedural"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_ones(arguments, message):
    name, part, options = arguments
    with pytest.raises(DataError, match=message):
        load_rows(name, part, **options)


# The hub: the real `datasets.load_dataset`, on a dataset folder, and its failures.


def test_the_datasets_library_reads_what_the_hub_id_names(tmp_path, monkeypatch):
    folder = tmp_path / "hub" / "gsm8k"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in numbered(60)))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    spec = CATALOGUE["gsm8k"]
    local = type(spec)(**{**vars(spec), "hf_id": str(folder), "config": None})
    monkeypatch.setitem(CATALOGUE, "gsm8k", local)
    rows = load_rows("gsm8k", "train", source="real", limit=10)
    assert (rows.source, rows.split, len(rows.examples)) == ("hub", "train, nine tenths", 10)
    assert rows.examples[0].source == "hub" and "none is set" in rows.passed_over
    monkeypatch.setitem(CATALOGUE, "gsm8k", type(spec)(**{**vars(local), "streamed": True}))
    assert load_rows("gsm8k", "train", source="real", limit=10).examples == rows.examples


def test_the_hub_is_asked_for_id_config_split_and_stream(monkeypatch):
    asked = []

    def load_dataset(*arguments, **options):
        asked.append((*arguments, options["split"], options["streaming"]))
        return [{"text": "A page."}] * 40

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_rows("fineweb_edu", "train", source="real", limit=3).source == "hub"
    assert asked == [("HuggingFaceFW/fineweb-edu", "sample-10BT", "train", True)]


def test_a_wrong_row_of_the_hub_is_an_error_not_a_reason_to_go_on(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"page": "no text"}])
    with pytest.raises(DataError, match="openwebtext, split train, row 0: field 'text' is missing"):
        load_rows("openwebtext", "train", source="auto")


@pytest.mark.parametrize(
    "failure", [ConnectionError("no route"), ValueError("Couldn't find cache"), FileNotFoundError("gone")]
)
def test_without_the_hub_auto_takes_the_twin_and_keeps_the_reason(monkeypatch, failure):
    def load_dataset(*_, **__):
        raise failure

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = load_rows("boolq", "train", limit=5)
    assert rows.source == "procedural" and len(rows.examples) == 5
    assert "mirror: none is set" in rows.passed_over and str(failure) in rows.passed_over
    with pytest.raises(DataError, match=r"no real rows of boolq.*mirror: none is set.*hub: google/boolq.*'auto'"):
        load_rows("boolq", "train", source="real")


def test_an_unreachable_hub_is_asked_once(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    tries = []
    monkeypatch.setattr(
        "forgelib.data.sources.probe", lambda seconds: tries.append(seconds) or "the hub is not reachable"
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("an unreachable hub was asked for rows"))
    hub = Hub()
    for name in ("gsm8k", "boolq", "piqa"):
        assert load_rows(name, "train", hub=hub, limit=3).source == "procedural"
    assert len(tries) == 1
    with pytest.raises(HubError):
        hub.rows(CATALOGUE["drop"], "train", 3)


def test_the_probe_answers_soon(monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        assert probe(2.0) == ""
    assert "127.0.0.1 is not reachable" in probe(2.0)


def test_a_docstring_in_plain_quotes_is_not_shown_either(mirror):
    row = {
        "code": "def f():\n    'Say hello.'\n    return 1",
        "docstring": "Say hello.",
        "code_tokens": ["def", "f", "(", ")"],
    }
    for split in ("train", "validation"):
        write(mirror, "codexglue", split, [row])
    (example,) = load_rows("codexglue", "train", mirror=mirror).examples
    assert example.answer == "Say hello." and "hello" not in example.prompt
    assert example.prompt.startswith("def f ( )\nQuestion: ")
