"""Phase 3's rows: where they come from, that parts never meet, and what the tables say of them."""

from dataclasses import replace

import numpy as np
import pytest

from forgelib.data import DataError, vocabulary, write_rows
from forgelib.data.traces import procedural_rows
from forgelib.evaluate.reasoning import Reasoned
from forgelib.workbook import phase3
from forgelib.workbook.params import ParameterError, QuietBake, resolve

WORDS = vocabulary("forge-12")
P = QuietBake(profile="smoke", rows=60, watch_rows=20, gate_rows=40, headroom_rows=0, data="procedural")


def test_procedural_rows_of_three_parts_that_never_meet():
    found = phase3.splits(P, WORDS)
    assert (len(found.train), len(found.watch), len(found.gate)) == (60, 20, 40) and found.skipped == []
    prompts = [{row.prompt for row in part} for part in (found.train, found.watch, found.gate)]
    assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]
    assert all(len({row.strategy for row in part}) == 10 for part in (found.train, found.watch, found.gate))


def test_a_strategy_with_few_problems_is_shown_as_often_as_the_others():
    found = phase3.splits(P.model_copy(update={"rows": 6000}), WORDS)
    shown = {name: [row for row in found.train if row.strategy == name] for name in WORDS.tag_of}
    assert {len(rows) for rows in shown.values()} == {600}
    few = shown["mece"]
    assert len(set(few)) < 600 and max(few.count(row) for row in few) - min(few.count(row) for row in few) <= 1
    assert phase3.source_rows(found)[0]["train"] == len(set(found.train)) < 6000


def test_a_file_with_one_held_out_row_of_each_strategy_still_has_rows_to_watch(tmp_path):
    rows = procedural_rows(600, WORDS, seed=0)
    held = {row.strategy: row for row in rows if row.part == "validation"}
    write_rows(tmp_path / "rows.jsonl", [*(row for row in rows if row.part == "train"), *held.values()])
    found = phase3.splits(P.model_copy(update={"reasoning_file": str(tmp_path / "rows.jsonl")}), WORDS)
    assert (len(found.watch), len(found.gate)) == (3, 7)


def test_rows_of_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    write_rows(path, procedural_rows(400, WORDS, seed=0))
    with path.open("a") as file:
        file.write("{broken\n")
    found = phase3.splits(P.model_copy(update={"reasoning_file": str(path)}), WORDS)
    assert len(found.train) == 60 and {row.part for row in found.train} == {"train"}
    assert {row.part for row in found.watch + found.gate} == {"validation"} and len(found.gate) > len(found.watch)
    assert len(found.skipped) == 1 and "rows.jsonl, line 401: is no JSON" in found.skipped[0]


def test_every_maker_is_listed_with_what_was_checked():
    found = phase3.splits(P, WORDS)
    mixed = replace(found, gate=[replace(row, source="local:x", verified=False) for row in found.gate])
    mine, theirs = phase3.source_rows(mixed)
    assert mine == {"dataset": "reasoning rows", "source": "procedural"} | {
        "train": 60,
        "watch": 20,
        "gate": 0,
        "checked": 80,
    }
    assert theirs["source"] == "local:x" and theirs["gate"] == 40 and theirs["checked"] == 0


def test_a_file_without_rows_for_validation_is_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [row for row in procedural_rows(60, WORDS, seed=0) if row.part == "train"]
    write_rows(path, rows)
    with pytest.raises(DataError, match=f"no rows are left to watch: {len(rows)} to train on, 0 for validation"):
        phase3.splits(P.model_copy(update={"reasoning_file": str(path)}), WORDS)


def reasoned(correct):
    rows = procedural_rows(len(correct), WORDS, seed=0)
    return Reasoned(rows, [""] * len(rows), [" x"] * len(rows), [WORDS.read(" x")] * len(rows), np.array(correct))


def test_the_table_has_a_line_a_strategy_with_its_interval():
    before, after = reasoned([False] * 100), reasoned([i % 20 != 0 for i in range(100)])
    rows = {row["strategy"]: row for row in phase3.strategy_rows(before, after, 0.765)}
    assert len(rows) == 10 and rows["mece"]["rows"] == 10 and rows["mece"]["before"] == 0.0
    assert rows["chain_of_thought"]["after"] == 0.5 and rows["chain_of_thought"]["verdict"] == "failed"
    assert rows["mece"] == {**rows["mece"], "after": 1.0, "high": 1.0, "verdict": "passed"}
    assert rows["mece"]["low"] == pytest.approx(10 / (10 + 1.96**2), abs=1e-3), "ten of ten are not all there are"
    every = phase3.overall_row(before, after, 0.85)
    assert every["after"] == 0.95 and every["low"] < 0.95 < every["high"] and every["verdict"] == "passed"


def test_examples_show_right_and_wrong_ones():
    found = phase3.example_rows(reasoned([i % 40 < 20 for i in range(100)]), 6)
    assert len({row["strategy"] for row in found}) == 6 and {row["right"] for row in found} == {"yes", "no"}
    assert phase3.example_rows(replace(reasoned([True] * 30)), 10)[9]["right"] == "yes"


def test_the_handoff_shows_every_check(tmp_path):
    class Artifact:
        manifest = {"verdicts": [{"gate": "G", "checks": [{"name": "a", "measured": 1.0, "verdict": "failed"}]}]}  # noqa: RUF012

    assert phase3.handoff_rows(Artifact()) == [{"gate": "G", "check": "a", "measured": 1.0, "verdict": "failed"}]


def test_a_share_just_below_the_threshold_is_not_rounded_up():
    """13 of 17 are 0.7647."""
    row = phase3.overall_row(reasoned([False] * 17), reasoned([i < 13 for i in range(17)]), 0.765)
    assert row["after"] < 0.765 and row["verdict"] == "failed"


def test_other_rows_in_the_same_file_are_another_baking(tmp_path):
    path, other = tmp_path / "rows.jsonl", tmp_path / "moved.jsonl"
    write_rows(path, procedural_rows(40, WORDS, seed=0))
    write_rows(other, procedural_rows(40, WORDS, seed=0))
    here, there = (P.model_copy(update={"reasoning_file": str(one)}) for one in (path, other))
    keys = [phase3.open_bake(here, []).key, phase3.open_bake(there, []).key]
    write_rows(path, procedural_rows(40, WORDS, seed=1))
    assert keys[0] == keys[1] != phase3.open_bake(here, []).key


def test_headroom_rows_are_harder_and_only_trained_on():
    found = phase3.splits(P.model_copy(update={"headroom_rows": 9}), WORDS)
    harder = [row for row in found.train if row.difficulty == 2]
    assert len(harder) == 9 and all(row.part == "train" for row in harder)
    assert {row.strategy for row in harder} == {"chain_of_thought"}
    assert not [row for row in found.watch + found.gate if row.difficulty > 1]


def test_nothing_is_harder_than_the_hardest():
    with pytest.raises(ParameterError, match="nothing is harder"):
        resolve(QuietBake, {"difficulty": 3})
