"""The search's tables, from records small enough to count by hand."""

from dataclasses import replace

import pytest

from forgelib.phases.genome import default_genome
from forgelib.workbook.evolution_tables import effect_rows, family_rows, genome_pairs, usage, usage_rows

CHAMPION = default_genome("010", 3, 2)


def record(step: int, recipes: list[str], family: list[tuple]) -> dict:
    names = ("key", "how", "bits", "parents")
    return {"step": step, "recipes": recipes, "family": [dict(zip(names, one, strict=True)) for one in family]}


RECORDS = [
    record(0, ["000", "000", "111"], [("first", "given", "000", []), ("second", "given", "111", [])]),
    record(1, ["000", "010", "010"], [(CHAMPION.key, "mutation", "010", ["first"]), ("other", "fresh", "111", [])]),
]


def test_usage_counts_members_by_recipe_and_stretch():
    table = usage(RECORDS)
    assert list(table["000"].values()) == [2, 1] and list(table["010"].values()) == [0, 2]
    assert sum(sum(stretches.values()) for stretches in table.values()) == 6
    long = usage([{**RECORDS[0], "step": i} for i in range(25)])
    assert list(long["000"]) == ["0-2", "3-5", "6-8", "9-11", "12-14", "15-16", "17-18", "19-20", "21-22", "23-24"]
    assert set(long["000"].values()) == {2.0}
    (row,) = [row for row in usage_rows(RECORDS) if row["recipe"] == "101"]
    assert row == {"recipe": "101", "techniques": "SLERP, DARE, DFS", "members": 0}


def test_a_genome_is_told_in_four_digits_and_whose_dials_it_has_by_name():
    moved = replace(CHAMPION, weights=(1 / 3, 1 / 3, 1 / 3), dials=2)
    told = genome_pairs(moved, ["reasoning", "memory", "speed"])
    assert told["weights"] == "0.3333, 0.3333, 0.3333" and told["dials"] == "those of speed" and told["bits"] == "010"
    assert "of the merges" not in told and "drop_rate" not in told, "nothing that this recipe does not express"
    chaos = genome_pairs(replace(CHAMPION, of=(CHAMPION, default_genome("111", 3, 2)), dials=1), ["a", "b", "c"])
    assert chaos["dials"] == "those of merge 2" and chaos["of the merges"] == "010, 111"


def test_effects_are_differences_of_means_with_intervals_over_children():
    fitness = {"000": (1.0, 1.2), "010": (1.5, 1.7), "100": (1.0, 1.0), "110": (1.6, 1.6)}
    evaluations = [{"genome": {"bits": bits}, "fitness": f} for bits, both in fitness.items() for f in both]
    first, second, third = effect_rows(evaluations, seed=0)
    assert first["effect"] == pytest.approx(1.3 - 1.35) and first["low"] < first["effect"] < first["high"]
    assert second["effect"] == pytest.approx(1.6 - 1.05) and second["low"] > 0
    assert second["pair"] == "TIES instead of DARE" and (second["children with"], second["without"]) == (4, 4)
    assert third["effect"] is None, "no child had DFS: nothing was measured"


def test_the_family_leads_from_the_champion_back_to_the_parents():
    rows = family_rows(RECORDS, CHAMPION)
    assert [row["child"] for row in rows] == [CHAMPION.key[:6], "first"]
    assert rows[0]["from"] == "first" and rows[1]["from"] == "the parents" and rows[1]["how"] == "given"
