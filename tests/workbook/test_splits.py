"""What the search saw, what chose the champion and what scored it: three splits that share no prompt."""

import gzip
import json
from dataclasses import replace

import pytest

from forgelib.data import DataError, Example
from forgelib.data.prepare import DataBundle, DataConfig, prepare
from forgelib.phases.evomerge import references
from forgelib.phases.ledger import Ledger
from forgelib.workbook import phase2
from forgelib.workbook.params import EvoEvolve

ROWS, RACE_ROWS = 4, 2


@pytest.fixture(scope="module")
def bundle() -> DataBundle:
    return prepare(
        DataConfig(
            source="procedural",
            datasets=("gsm8k", "mbpp", "piqa", "wikitext"),
            rows_per_dataset=60,
            heldout_per_dataset=10,
            seq_lens=(16, 16, 16),
            vocab_size=300,
        )
    )


def prompts(examples: list[Example]) -> set[str]:
    return {example.prompt for example in examples}


def test_the_splits_share_no_prompt_with_each_other_or_with_training(bundle):
    p = EvoEvolve(data="procedural", search_rows=ROWS, race_rows=RACE_ROWS, champion_rows=12)
    searched = phase2.search_examples(bundle, ROWS, p.seed)
    raced = phase2.race_examples(bundle, ROWS, RACE_ROWS, p.seed)
    chosen_by = phase2.selection_examples(bundle, ROWS + RACE_ROWS, p.seed)
    unseen = phase2.champion_examples(p, bundle)
    assert {e.dataset for e in searched} == {e.dataset for e in unseen} == set(bundle.config.datasets)
    assert len(searched) == 4 * ROWS and 0 < len(chosen_by) <= 4 * (10 - ROWS - RACE_ROWS) and len(unseen) > 30
    assert {e.dataset for e in raced} == set(bundle.config.datasets) and len(raced) <= 4 * RACE_ROWS
    assert not prompts(searched) & prompts(chosen_by) and not prompts(raced) & prompts(searched)
    assert not prompts(raced) & prompts(chosen_by)
    assert not prompts(unseen) & (prompts(searched) | prompts(raced) | prompts(chosen_by))
    texts = bundle.tokenizer.batch_decode(
        [row for stage in bundle.pools.values() for pool in stage.values() for row in pool]
    )
    trained = " ".join(texts)
    assert not [e.prompt for e in unseen if e.answer and len(e.prompt) > 40 and f"{e.prompt} {e.answer}" in trained]


def test_a_planted_leak_is_left_out(bundle, monkeypatch):
    """One test row is replaced by a prompt that was trained on."""
    p = EvoEvolve(data="procedural", search_rows=ROWS, champion_rows=12)
    stream = bundle.pools["foundation"]["math"].flatten().tolist()
    first = stream[: stream.index(bundle.tokenizer.eos_token_id)]
    planted = Example(bundle.tokenizer.decode(first[: len(first) // 2]), "42", "math", "gsm8k", "procedural")
    real = phase2.load_rows

    def with_a_leak(name: str, part: str, **asked):
        rows = real(name, part, **asked)
        return type(rows)([planted, *rows.examples], *list(vars(rows).values())[1:]) if name == "gsm8k" else rows

    monkeypatch.setattr(phase2, "load_rows", with_a_leak)
    found = phase2.champion_examples(p, bundle)
    assert found and planted.prompt not in prompts(found)


def test_a_search_that_takes_every_held_out_row_is_refused(bundle):
    with pytest.raises(DataError, match="search_rows and race_rows, 10 together, take every held-out row"):
        phase2.selection_examples(bundle, 10, 0)


def test_both_splits_choose_the_champion_and_parents_stand_beside_it():
    ledger, (parent, *others) = Ledger(), [member.genome for member in references(3, 2)]
    children = [replace(others[-1], scale=scale) for scale in (1.1, 1.3)]
    fitness = {parent.key: (1.04, 1.08), children[0].key: (1.09, 1.0), children[1].key: (1.07, 1.06)}
    for genome in (parent, *children, *others):
        searched = fitness.get(genome.key, (1.0, 1.0))[0]
        ledger.write(genome.key, {"genome": genome.to_dict(), "fitness": searched, "replaced": ""})

    def measure(genomes):
        return [{"fitness": fitness.get(genome.key, (1.0, 1.0))[1]} for genome in genomes]

    champion, rows = phase2.choose(ledger, measure, 3, 2)
    assert champion == children[1], "neither the best of the search nor that of the selection split"
    rows = {row["child"]: row for row in rows}
    assert rows[parent.key[:6]]["recipe"] == "parent 0" and rows[parent.key[:6]]["mean of both"] == 1.06
    assert rows[champion.key[:6]]["mean of both"] == 1.065
    (three,) = [row for row in rows.values() if row["recipe"] == "mean of the 3 fittest"]
    assert three["fitness in the search"] is None
    assert three["mean of both"] == pytest.approx(((1.09 + 1.07 + 1.04) / 3 + 1.0) / 2, abs=1e-4)


def test_a_moved_threshold_or_worker_is_no_other_search(tmp_path, monkeypatch):
    monkeypatch.setenv("FORGE_RUNS", str(tmp_path))
    parents = phase2.Family({}, tmp_path, [])

    def key(**knobs) -> str:
        return phase2.open_search(EvoEvolve(**knobs), parents).key

    assert key() == key(fitness_threshold=1.1) == key(workers=3) == key(champion_rows=9) == key(controls="untrained")
    assert len({key(), key(search_rows=5), key(race_rows=3), key(winners=3), key(generations=7), key(seed=1)}) == 6


def test_a_damaged_test_split_is_an_error_and_no_missing_one(tmp_path, monkeypatch):
    """The champion would be scored on other rows, and nobody told."""
    monkeypatch.setenv("FORGE_DATASETS", str(tmp_path))
    (tmp_path / "gsm8k").mkdir()
    row = json.dumps({"question": "What is 1 + 2?", "answer": "1 + 2 = 3\n#### 3"}) + "\n"
    for split in ("train", "test"):
        (tmp_path / "gsm8k" / f"{split}.jsonl.gz").write_bytes(gzip.compress(row.encode()))
    assert len(phase2.unseen_rows("gsm8k", "auto", 5, 0, set())) == 1
    (tmp_path / "gsm8k" / "test.jsonl.gz").write_bytes(gzip.compress(row.encode())[:20])
    with pytest.raises(DataError, match=r"test\.jsonl\.gz"):
        phase2.unseen_rows("gsm8k", "auto", 5, 0, set())
