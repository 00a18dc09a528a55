"""Reasoning rows: one schema; unusable lines are skipped by name, unusable files refused."""

import json
from dataclasses import asdict, replace

import pytest

from forgelib.data import DataError, ReasoningRow, RowError, read_rows, to_row, vocabulary, worked_rows, write_rows

WORDS = vocabulary("forge-12")
ROW = ReasoningRow(
    prompt="Question: 3 + 4?\nAnswer:",
    reasoning="[thinking]<step> 3 + 4 = 7[/endthinking]",
    answer="7",
    strategy="chain_of_thought",
    difficulty=1,
    topic="sums",
    source="procedural",
    verified=True,
)


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [ROW, replace(ROW, prompt="Was ist 3 + 4, naïv gerechnet?\u2028Answer:", verified=False)]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl", WORDS) == (rows, [])


@pytest.mark.parametrize(
    "change, told",
    [
        ({"answer": " "}, "field 'answer' is empty"),
        ({"difficulty": 4}, "field 'difficulty' must be 1 to 3, not 4"),
        ({"difficulty": True}, "field 'difficulty' must hold int, not bool"),
        ({"strategy": "guessing"}, "field 'strategy' must be one of chain_of_thought"),
        ({"reasoning": "3 + 4 = 7"}, "field 'reasoning' is not one thought: must begin with"),
        ({"reasoning": "[thinking]<step> 3"}, "is never closed"),
        ({"reasoning": "[thinking][/endthinking]"}, "holds an empty thought"),
        ({"reasoning": ROW.reasoning + " 7"}, "is not one thought"),
        ({"verified": "yes"}, "field 'verified' must hold bool"),
        ({"model": "x"}, "field 'model' is no field"),
    ],
)
def test_a_wrong_field_is_named(change, told):
    with pytest.raises(RowError) as caught:
        to_row({**asdict(ROW), **change}, WORDS)
    assert told in str(caught.value)


def test_a_missing_field_is_named():
    with pytest.raises(RowError, match="field 'answer' is missing"):
        to_row({k: v for k, v in asdict(ROW).items() if k != "answer"}, WORDS)


def test_a_strategy_without_a_place_in_the_vocabulary_is_refused():
    with pytest.raises(RowError, match="'uncertainty' has no place in vocabulary forge-8"):
        to_row({**asdict(ROW), "strategy": "uncertainty"}, vocabulary("forge-8"))


def test_corrupt_lines_are_skipped_and_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(asdict(ROW)), '{"prompt": "x', "", json.dumps({**asdict(ROW), "answer": ""}), "[1]"]
    path.write_text("\n".join(lines))
    rows, skipped = read_rows(path, WORDS)
    assert rows == [ROW]
    assert [line.split(":")[0] for line in skipped] == [
        "rows.jsonl, line 2",
        "rows.jsonl, line 4",
        "rows.jsonl, line 5",
    ]
    assert "is no JSON" in skipped[0] and "'answer' is empty" in skipped[1] and "must be an object" in skipped[2]


@pytest.mark.parametrize(
    "content, told",
    [
        (b"", "is empty"),
        (b"{}\n", "none of its 1 rows can be used, the first: rows.jsonl, line 1"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_file_without_rows_is_refused(tmp_path, content, told):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=told):
        read_rows(tmp_path / "rows.jsonl", WORDS)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl", WORDS)


def test_a_tenth_of_the_prompts_is_for_validation():
    parts = [replace(ROW, prompt=f"{i}").part for i in range(3000)]
    assert set(parts) == {"train", "validation"} and 0.08 < parts.count("validation") / 3000 < 0.12
    assert ROW.part == replace(ROW, answer="8", strategy="self_doubt").part, "the prompt alone decides"


def test_worked_solutions_of_real_rows_become_steps(real_datasets):
    from forgelib.data.prepare import load_rows

    examples = load_rows("gsm8k", "train", source="real", mirror=real_datasets, limit=50).examples
    rows = worked_rows(examples, WORDS)
    assert len(rows) == len(examples) == 50 and {row.strategy for row in rows} == {"chain_of_thought"}
    for row, example in zip(rows, examples, strict=True):
        assert to_row(asdict(row), WORDS) == row and not row.verified and row.source == "gsm8k (mirror)"
        steps = [text for _, text in WORDS.read(row.reasoning).steps]
        assert " ".join(steps).split() == example.reasoning.split() and row.prompt == example.prompt
    assert worked_rows([replace(examples[0], reasoning="")], WORDS) == []
