"""Preparing the data: complete, disjoint, deterministic across processes, saved and loaded bit for bit, on time."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from forgelib.data import CATALOGUE, CATEGORIES, CURRICULUM, DataError
from forgelib.data.prepare import DataBundle, DataConfig, prepare

SMALL = {"source": "procedural", "rows_per_dataset": 24, "heldout_per_dataset": 8, "vocab_size": 400}


@pytest.fixture(autouse=True)
def no_mirror_of_the_machine(monkeypatch):
    monkeypatch.delenv("FORGE_DATASETS", raising=False)


@pytest.fixture(scope="module")
def bundle():
    return prepare(DataConfig(**SMALL))


def test_each_stage_has_the_categories_of_its_datasets_at_its_length(bundle):
    lengths = dict(zip(CURRICULUM, bundle.config.seq_lens, strict=True))
    categories = {stage: sorted(pools) for stage, pools in bundle.pools.items()}
    assert categories == {
        "foundation": ["code", "math"],
        "reasoning": sorted(CATEGORIES),
        "advanced": sorted(CATEGORIES),
    }
    for stage, pools in bundle.pools.items():
        for pool in pools.values():
            assert pool.dtype == torch.int32 and pool.shape[1] == lengths[stage]
            assert int(pool.min()) >= 0 and int(pool.max()) < len(bundle.tokenizer)


def test_the_source_table_accounts_for_every_token(bundle):
    assert [row.dataset for row in bundle.sources] == list(CATALOGUE)
    for category, pool in bundle.pools["advanced"].items():
        tokens = sum(row.tokens for row in bundle.sources if row.category == category)
        assert 0 <= pool.numel() - tokens < bundle.config.seq_lens[-1], "only the last row is filled up"
    assert {row.source for row in bundle.sources} == {"procedural"}
    assert {row.licence for row in bundle.sources} == {"generated here"}


def test_no_heldout_prompt_is_trained_on(bundle):
    trained = "\n".join(bundle.tokenizer.decode(pool.flatten()) for pool in bundle.pools["advanced"].values())
    for category in CATEGORIES:
        assert bundle.heldout[category]
        for example in bundle.heldout[category]:
            assert example.prompt not in trained


def test_heldout_rows_are_there_for_accuracy_and_perplexity(bundle):
    assert all(bundle.questions(category) for category in CATEGORIES if category != "language")
    assert bundle.questions("language") == ()
    assert {name: pool.shape[1] for name, pool in bundle.heldout_pools.items()} == dict.fromkeys(CATEGORIES, 256)


def test_weights_follow_mix_and_stage(bundle):
    assert bundle.weights("trunk", "advanced") == (pytest.approx(dict.fromkeys(CATEGORIES, 0.2)), "")
    weights, note = bundle.weights("reasoning", "foundation")
    assert weights == pytest.approx({"math": 0.8, "code": 0.2}) and "no rows of qa" in note
    assert note in "\n".join(bundle.notes)
    with pytest.raises(DataError, match="trunk or one of reasoning, memory, speed"):
        bundle.weights("writing", "advanced")
    with pytest.raises(DataError, match="foundation, reasoning, advanced"):
        bundle.weights("trunk", "final")


def test_the_seed_decides_and_the_process_does_not(bundle):
    program = (
        "from forgelib.data.prepare import DataConfig, prepare; "
        f"print(prepare(DataConfig(**{SMALL!r})).digest, prepare(DataConfig(**{SMALL!r}, seed=1)).digest)"
    )
    environment = {"PYTHONHASHSEED": "7", "PATH": "", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    same, other = run.stdout.split()
    assert same == bundle.digest != other


def test_a_saved_bundle_comes_back_bit_for_bit(bundle, tmp_path):
    loaded = DataBundle.load(bundle.save(tmp_path / "data"))
    assert loaded.digest == bundle.digest
    assert loaded.config == bundle.config and loaded.sources == bundle.sources and loaded.notes == bundle.notes
    assert loaded.heldout == bundle.heldout
    for stage, pools in bundle.pools.items():
        for category, pool in pools.items():
            assert torch.equal(loaded.pools[stage][category], pool)
    text = bundle.heldout["math"][0].text
    assert loaded.tokenizer(text)["input_ids"] == bundle.tokenizer(text)["input_ids"]
    assert loaded.tokenizer.eos_token_id == bundle.tokenizer.eos_token_id
    assert not [path for path in (tmp_path / "data").rglob("*") if path.suffix in {".pt", ".bin", ".pkl"}]


def test_a_row_may_hold_what_python_takes_for_the_end_of_a_line(bundle, tmp_path):
    first, *others = bundle.heldout["math"]
    odd = replace(first, prompt="one\u2028two\u0085three\x0cfour " + first.prompt)
    with_it = replace(bundle, heldout={**bundle.heldout, "math": (odd, *others)})
    assert DataBundle.load(with_it.save(tmp_path / "data")).heldout["math"][0] == odd


def test_a_changed_or_missing_file_is_noticed(bundle, tmp_path):
    folder = bundle.save(tmp_path / "data")
    rows = (folder / "heldout.jsonl").read_text()
    (folder / "heldout.jsonl").write_text(rows.replace('"answer": "', '"answer": "1', 1))
    with pytest.raises(DataError, match="digest differs"):
        DataBundle.load(folder)
    (folder / "heldout.jsonl").unlink()
    with pytest.raises(DataError, match=r"heldout\.jsonl is missing"):
        DataBundle.load(folder)


def test_real_rows_and_twins_stand_side_by_side_in_the_table(real_datasets):
    names = ("gsm8k", "arc_easy", "drop", "openwebtext")
    config = DataConfig(
        source="auto", datasets=names, rows_per_dataset=60, heldout_per_dataset=20, mirror=real_datasets
    )
    bundle = prepare(config)
    table = {row.dataset: row for row in bundle.sources}
    sources = {name: row.source for name, row in table.items()}
    assert sources == {
        "gsm8k": "mirror",
        "arc_easy": "mirror",
        "drop": "mirror",
        "openwebtext": "procedural",
    }
    assert table["gsm8k"].licence == "MIT" and table["gsm8k"].split == "train, nine tenths"
    assert "mirror:" in table["openwebtext"].note and "hub:" in table["openwebtext"].note
    assert table["drop"].heldout_split == "validation, one tenth"
    (absent,) = [row for row in prepare(config.model_copy(update={"source": "real"})).sources if row.source == "absent"]
    assert (absent.dataset, absent.rows) == ("openwebtext", 0) and absent.note.startswith("optional")
    with pytest.raises(DataError, match=r"no real rows of boolq.*mirror.*hub"):
        prepare(config.model_copy(update={"source": "real", "datasets": ("boolq",), "mirror": real_datasets / "gsm8k"}))


def test_questions_too_long_for_a_row_are_counted(real_datasets):
    config = DataConfig(datasets=("hotpotqa",), rows_per_dataset=20, heldout_per_dataset=10, mirror=real_datasets)
    (row,) = prepare(config).sources
    assert "10 of 10 held-out questions are longer than 256 tokens" in row.note


@pytest.mark.parametrize(
    "change, message",
    [
        ({"datasets": ("gsm8k", "glue")}, "glue"),
        ({"datasets": ()}, "distinct names"),
        ({"rows_per_dataset": 0}, "rows_per_dataset"),
        ({"vocab_size": "1024"}, "vocab_size"),
        ({"vocab_size": 264}, "vocab_size"),
        ({"seq_lens": (64, 128)}, "seq_lens"),
        ({"source": "hub"}, "source"),
        ({"rows": 3}, "rows"),
    ],
)
def test_a_wrong_configuration_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        DataConfig(**{**SMALL, **change})


def test_preparing_the_laptop_rows_takes_seconds():
    started = time.process_time()
    bundle = prepare(DataConfig(source="procedural", rows_per_dataset=1500, vocab_size=1024))
    assert time.process_time() - started < 15, "processor seconds, so that a busy machine does not fail the test"
    assert sum(row.rows for row in bundle.sources) == 16 * 1500
