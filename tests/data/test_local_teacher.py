"""Rows by a local model: what it writes well is kept, what it writes badly is named, a killed teacher goes on as if it
had not been, and one that cannot do it is told."""

import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from forgelib.data import (
    STRATEGY_TEXTS,
    DataError,
    LocalTeacherConfig,
    Question,
    RowStore,
    read_rows,
    statistics,
    vocabulary,
    write_with_local_model,
)

WORDS = vocabulary("forge-12")


class Letters:
    """A tokenizer of characters; 0 ends a text."""

    eos_token_id, pad_token_id = 0, 0

    def __call__(self, text: str) -> dict:
        return {"input_ids": [ord(one) for one in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


class Scripted:
    """A model whose `generate` writes `script(text, number of the text)`; it keeps the texts it was given."""

    def __init__(self, script, context=None):
        self.script, self.texts = script, []
        self.config = SimpleNamespace(max_position_embeddings=context)
        self.generation_config = SimpleNamespace(eos_token_id=[0, 7])

    def eval(self):
        return self

    def generate(self, input_ids, attention_mask, max_new_tokens, **sampling):
        written = []
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
            padding = mask.index(1)
            assert ids[:padding] == [0] * padding and all(ids[padding:]) and all(mask[padding:]), "padding on the left"
            self.texts.append("".join(chr(one) for one, seen in zip(ids, mask, strict=True) if seen))
            dice = int(torch.randint(1000, ()))
            written.append([*map(ord, self.script(self.texts[-1], len(self.texts), dice)), 0, ord("x")])
        width = max(map(len, written))
        return torch.cat([input_ids, torch.tensor([row + [0] * (width - len(row)) for row in written])], dim=1)


def own_tag(text: str) -> str:
    return re.search(r"begins with (<\w+>)", text)[1]


def good(text: str, number: int, dice: int) -> str:
    return (
        f" sums\nDifficulty: 2\nQuestion: {dice}, {number}?\nAnswer: [thinking]{own_tag(text)} t[/endthinking] {dice}"
    )


def config(tmp_path, **changes) -> LocalTeacherConfig:
    wanted = {"strategies": ("mece", "self_doubt", "bayesian"), "rows_per_strategy": 5, "batch_size": 4}
    return LocalTeacherConfig(model=tmp_path / "teacher-s", **{**wanted, "give_up_after": 20, **changes})


def write(tmp_path, model, folder="rows", questions=(), words=WORDS, **changes) -> list:
    wanted = config(tmp_path, **changes)
    records = write_with_local_model(wanted, words, tmp_path / folder, questions=questions, loaded=(model, Letters()))
    return list(records)


def test_every_strategy_gets_its_rows(tmp_path):
    model = Scripted(good)
    records = write(tmp_path, model)
    rows, skipped = read_rows(tmp_path / "rows" / "rows.jsonl", WORDS)
    assert skipped == [] and Counter(row.strategy for row in rows) == {"mece": 5, "self_doubt": 5, "bayesian": 5}
    assert {(row.source, row.verified, row.topic, row.difficulty) for row in rows} == {
        ("local:teacher-s", False, "sums", 2)
    }
    assert [record.missing for record in records] == [11, 7, 3, 0] and records[-1].rows == 15
    assert records[0].strategies == {"mece": 2, "self_doubt": 1, "bayesian": 1}
    assert rows[0].reasoning == "[thinking]<mece> t[/endthinking]" and rows[0].answer in rows[0].prompt
    assert write(tmp_path, model) == [], "nothing is missing"


def test_the_strategy_is_told_and_its_own_example_stands_last(tmp_path):
    model = Scripted(good)
    write(tmp_path, model, strategies=("self_doubt",), rows_per_strategy=1, shots=3)
    blocks = model.texts[0].split("\n\n")
    assert STRATEGY_TEXTS["self_doubt"].way in blocks[0] and "<doubt>" in blocks[0]
    assert len(blocks) == 5 and STRATEGY_TEXTS["self_doubt"].question in blocks[3] and blocks[4] == "Topic:"


@pytest.mark.parametrize(
    "bad, reason",
    [
        ("", "no lines Topic, Difficulty, Question and Answer"),
        (" a\nDifficulty: 1\nQuestion: q", "no lines Topic, Difficulty, Question and Answer"),
        (
            " a\nDifficulty: hard\nQuestion: q\nAnswer: [thinking]<doubt> t[/endthinking] 7",
            "'difficulty' must be 1 to 3",
        ),
        (" a\nDifficulty: 1\nQuestion: q\nAnswer: 7", "the answer does not begin with [thinking]"),
        (" a\nDifficulty: 1\nQuestion: q\nAnswer: [thinking]<doubt> t t t", "not closed with [/endthinking]"),
        (" a\nDifficulty: 1\nQuestion: q\nAnswer: [thinking]<doubt> t[/endthinking]", "'answer' is empty"),
        (" a\nDifficulty: 1\nQuestion: q\nAnswer: [thinking]<step> t[/endthinking] 7", "own tag <doubt>"),
        (" a\nDifficulty: 1\nQuestion: q\nAnswer: [thinking]<wrong> t[/endthinking] 7", "does not have: <wrong>"),
        (" a\nDifficulty: 1\nQuestion: \nAnswer: [thinking]<doubt> t[/endthinking] 7", "'prompt' is empty"),
        (" a\nDifficulty: 1\nQuestion: 1?\nAnswer: [thinking]<doubt> t[/endthinking] 7", "row with this prompt"),
    ],
)
def test_what_is_wrong_is_counted_by_its_reason(tmp_path, bad, reason):
    first = bad.replace("Question: q", "Question: 1?") if "prompt" in reason else bad
    script = lambda text, number, dice: first if number % 2 == 0 else good(text, number, dice)  # noqa: E731
    if "this prompt" in reason:
        script = lambda text, number, dice: bad if number < 3 else good(text, number, dice)  # noqa: E731
    records = write(tmp_path, Scripted(script), strategies=("self_doubt",))
    rejected = sum((Counter(record.rejected) for record in records), Counter())
    assert len(rejected) == 1 and reason in next(iter(rejected)) and records[-1].rows == 5
    written = sum(sum(record.strategies.values()) for record in records)
    assert rejected.total() == written - 5 > 0, "each text is a row or has a reason"


def test_the_model_may_go_on_with_the_next_example(tmp_path):
    script = lambda *facts: good(*facts) + "\n\nTopic: more\nDifficulty: 1"  # noqa: E731
    write(tmp_path, Scripted(script))
    rows, _ = read_rows(tmp_path / "rows" / "rows.jsonl", WORDS)
    assert all(row.answer.isdigit() for row in rows)


@pytest.mark.parametrize("name", ["forge-8", "startofthought"])
def test_other_vocabularies_have_their_own_thoughts(tmp_path, name):
    words = vocabulary(name)
    tag = words.tag_of["mece"]
    script = lambda text, number, dice: (  # noqa: E731
        f" a\nDifficulty: 1\nQuestion: {number}?\nAnswer: {words.begin}{tag} t{words.end} 7"
    )
    write(tmp_path, Scripted(script), words=words, strategies=("mece",))
    assert len(read_rows(tmp_path / "rows" / "rows.jsonl", words)[0]) == 5


def test_given_questions_are_answered_each_once(tmp_path):
    questions = [Question(f"What is {at} + 1?", "sums", 1 + at % 3) for at in range(20)]
    bad_once: set[str] = set()

    def script(text, number, dice):
        asked = re.search(r"Question: (.*)\nAnswer:$", text)[1]
        if number % 3 == 0 and asked not in bad_once:
            bad_once.add(asked)
            return " I do not know"
        return f" [thinking]{own_tag(text)} {asked}[/endthinking] {number}"

    write(tmp_path, Scripted(script), questions=questions)
    rows, _ = read_rows(tmp_path / "rows" / "rows.jsonl", WORDS)
    known = {f"Question: {question.text}\nAnswer:": question for question in questions}
    assert len(rows) == 15 == len({row.prompt for row in rows}) and bad_once
    assert all(known[row.prompt].difficulty == row.difficulty and row.prompt[10:-8] in row.reasoning for row in rows)


def test_questions_that_are_used_up_are_told(tmp_path):
    questions = [Question(f"{at}?", "sums") for at in range(7)]
    script = lambda text, number, dice: f" [thinking]{own_tag(text)} t[/endthinking] 1"  # noqa: E731
    with pytest.raises(DataError, match="all 7 questions have a row and 8 rows are still missing"):
        write(tmp_path, Scripted(script), questions=questions)
    assert len(read_rows(tmp_path / "rows" / "rows.jsonl", WORDS)[0]) == 7


def half_bad(text: str, number: int, dice: int) -> str:
    return good(text, dice, dice) if dice % 2 else "no"


def content(folder) -> tuple[str, str]:
    return (folder / "rows.jsonl").read_text(), (folder / "journal.jsonl").read_text()


@pytest.mark.parametrize("torn", ["between batches", "before the journal", "inside a row"])
def test_a_teacher_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, torn):
    write(tmp_path, Scripted(half_bad), "whole", give_up_after=1000)
    wanted, folder = config(tmp_path, give_up_after=1000), tmp_path / "parts"
    torch.manual_seed(5)
    records = write_with_local_model(wanted, WORDS, folder, loaded=(Scripted(half_bad), Letters()))
    for _ in range(3):
        next(records)
    records.close()
    if torn != "between batches":
        journal = (folder / "journal.jsonl").read_text().splitlines(keepends=True)
        (folder / "journal.jsonl").write_text("".join(journal[:-1]) + journal[-1][:20])
    if torn == "inside a row":
        with (folder / "rows.jsonl").open("r+") as file:
            file.truncate((folder / "rows.jsonl").stat().st_size - 9)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    write(tmp_path, Scripted(half_bad), "parts", give_up_after=1000)
    assert content(folder) == content(tmp_path / "whole"), "whatever the caller's random numbers were"
    assert torch.equal(state, torch.get_rng_state()), "and they are left as they were"


def test_another_seed_writes_other_rows(tmp_path):
    write(tmp_path, Scripted(good), "a")
    write(tmp_path, Scripted(good), "b", seed=1)
    assert content(tmp_path / "a")[0] != content(tmp_path / "b")[0]


def test_a_teacher_that_cannot_do_it_is_told_with_its_commonest_fault(tmp_path):
    script = lambda text, number, dice: "gibberish" if number % 4 else good(text, 1, 1).replace("[/end", "[")  # noqa: E731
    model = Scripted(script)
    told = r"teacher-s wrote 20 texts in a row and none was a valid row of vocabulary forge-12; most often \(15 times\)"
    with pytest.raises(DataError, match=told + r": no lines Topic, .*The last text began"):
        write(tmp_path, model)
    assert len(model.texts) == 20
    counted = statistics(tmp_path / "rows")
    assert sum(row["rejected"].total() for row in counted) == 20 == sum(row["asked"] for row in counted)
    assert {row["accepted"] for row in counted} == {0} and sum(row["tokens_out"] for row in counted) > 15 * 9


def test_giving_up_counts_over_a_stop_but_a_new_start_begins_anew(tmp_path):
    bad = Scripted(lambda *_: "gibberish")
    records = write_with_local_model(config(tmp_path), WORDS, tmp_path / "rows", loaded=(bad, Letters()))
    for _ in range(3):
        next(records)
    records.close()
    with pytest.raises(DataError, match="wrote 20 texts"):
        write(tmp_path, bad)
    assert len(bad.texts) == 20, "as many as without the stop"
    with pytest.raises(DataError, match="wrote 20 texts"):
        write(tmp_path, bad)
    assert len(bad.texts) == 40
    assert write(tmp_path, Scripted(good))[-1].rows == 15, "after giving up a better teacher may go on"


def test_one_good_row_is_enough_to_go_on(tmp_path):
    script = lambda text, number, dice: good(text, number, dice) if number % 15 == 0 else "no"  # noqa: E731
    assert write(tmp_path, Scripted(script))[-1].rows == 15


def test_a_context_that_is_too_short_is_told(tmp_path):
    with pytest.raises(DataError, match="context of 512 tokens; the examples take"):
        write(tmp_path, Scripted(good, context=512))


@pytest.mark.parametrize(
    "change, told",
    [
        ({"rows_per_strategy": 0}, "rows_per_strategy is 0"),
        ({"shots": 0}, "shots is 0"),
        ({"temperature": 0.0}, "temperature is 0 and"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"strategies": ("mece", "mece")}, "none twice"),
        ({"strategies": ("guessing",)}, "strategy 'guessing' is unknown"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_work(tmp_path, change, told):
    with pytest.raises(DataError, match=told):
        write_with_local_model(config(tmp_path, **change), WORDS, tmp_path / "rows", loaded=(None, None))
    assert not (tmp_path / "rows").exists()


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(DataError, match="is no folder"):
        write_with_local_model(config(tmp_path), WORDS, tmp_path / "rows")
    (tmp_path / "teacher-s").mkdir()
    with pytest.raises(DataError, match="no causal language model can be loaded"):
        list(write_with_local_model(config(tmp_path), WORDS, tmp_path / "rows"))


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory):
    """A random two-layer Llama with a tokenizer trained on the examples, saved as a Hugging Face folder."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny-teacher"
    texts = [f"{one.way} {one.question} {one.answer}" for one in STRATEGY_TEXTS.values()]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=400, special_tokens=["</s>"])
    PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, eos_token_id=0
    )
    LlamaForCausalLM(shape).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_random_model_from_its_folder_writes_nothing_valid_and_that_is_told(tmp_path, teacher_folder):
    small = {"strategies": ("mece",), "shots": 1, "max_new_tokens": 8, "batch_size": 2, "give_up_after": 4}
    wanted = replace(config(tmp_path, **small), model=teacher_folder)
    for folder in ("a", "b"):
        with pytest.raises(
            DataError, match="local:tiny-teacher wrote 4 texts in a row and none was a valid row"
        ) as caught:
            list(write_with_local_model(wanted, WORDS, tmp_path / folder))
    first, second = ((tmp_path / folder / "journal.jsonl").read_text() for folder in ("a", "b"))
    assert first == second and "no lines Topic" in str(caught.value)


@pytest.mark.slow
def test_a_real_model_that_has_learned_one_row_writes_it(tmp_path, teacher_folder):
    """Taught by heart to continue the instruction with a good row, it is kept word by word."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from forgelib.data.local_teacher import _ask

    tokenizer = AutoTokenizer.from_pretrained(teacher_folder)
    model = AutoModelForCausalLM.from_pretrained(teacher_folder)
    question = Question("1?", "sums")
    text, row = _ask("mece", question, 1, WORDS), " [thinking]<mece> 1[/endthinking] 7"
    ids = torch.tensor([[*tokenizer(text)["input_ids"], *tokenizer(row)["input_ids"], tokenizer.eos_token_id]])
    labels = ids.clone()
    labels[:, : -len(tokenizer(row)["input_ids"]) - 1] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    while (loss := model(input_ids=ids, labels=labels).loss) > 0.02:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wanted = replace(
        config(tmp_path, strategies=("mece",), rows_per_strategy=1, shots=1, max_new_tokens=60, temperature=0.2),
        model=teacher_folder,
    )
    records = write_with_local_model(wanted, WORDS, tmp_path / "rows", questions=[question], loaded=(model, tokenizer))
    assert [(record.accepted, record.rows) for record in records] == [(1, 1)]
    (kept,), _ = read_rows(tmp_path / "rows" / "rows.jsonl", WORDS)
    assert (
        kept.text == "Question: 1?\nAnswer: [thinking]<mece> 1[/endthinking] 7" and kept.source == "local:tiny-teacher"
    )
    store = RowStore(tmp_path / "rows", WORDS, "local")
    assert [event["event"] for event in store.events] == ["maker", "batch"]
    store.close()
