"""What a language model may write, what is read of a broken answer, and rows that outlive a kill."""

import json

import pytest

from forgelib.data import (
    STRATEGIES,
    STRATEGY_TEXTS,
    DataError,
    RowError,
    RowStore,
    example_steps,
    json_request,
    read_objects,
    read_rows,
    statistics,
    vocabulary,
    written_row,
)

WORDS = vocabulary("forge-12")
FACT = {
    "prompt": "What is 3 + 4?",
    "steps": [["<step>", "3 + 4"], ["<doubt>", "is it 7? 4 + 3 = 7"]],
    "answer": "7",
    "difficulty": 1,
    "topic": "sums",
}
PRESETS = ("forge-12", "forge-8", "startofthought")


def test_a_good_object_becomes_an_unverified_row():
    row = written_row(FACT, "self_doubt", "openrouter:m", WORDS)
    assert row.prompt == "Question: What is 3 + 4?\nAnswer:" and row.source == "openrouter:m" and not row.verified
    assert row.reasoning == "[thinking]<step> 3 + 4<doubt> is it 7? 4 + 3 = 7[/endthinking]"
    other = {**FACT, "steps": [{"tag": tag, "text": text} for tag, text in FACT["steps"]], "answer": 7}
    whole = {**FACT, "prompt": row.prompt, "reasoning": row.reasoning}
    del whole["steps"]
    assert written_row(other, "self_doubt", "openrouter:m", WORDS) == row
    assert written_row(whole, "self_doubt", "openrouter:m", WORDS) == row


@pytest.mark.parametrize(
    "change, told",
    [
        ({"answer": None}, "'answer' is missing"),
        ({"answer": " "}, "'answer' is empty"),
        ({"answer": True}, "'answer' must hold str"),
        ({"prompt": 7}, "'prompt' must hold str"),
        ({"prompt": "Question: \nAnswer:"}, "'prompt' is empty"),
        ({"difficulty": 4}, "'difficulty' must be 1 to 3"),
        ({"difficulty": "1"}, "'difficulty' must hold int"),
        ({"steps": []}, "'steps' must be a list that is not empty"),
        ({"steps": "3 + 4"}, "'steps' must be a list that is not empty"),
        ({"steps": [["<doubt>"]]}, r"'steps' must hold \[tag, text\] pairs"),
        ({"steps": [["<doubt>", None]]}, r"'steps' must hold \[tag, text\] pairs"),
        ({"steps": [["<reason>", "x"]]}, "tag that vocabulary forge-12 does not have: <reason>"),
        ({"steps": [["doubt", "x"]]}, "tag that vocabulary forge-12 does not have: doubt"),
        ({"steps": [["<doubt>", "x <step> y"]]}, "a tag inside a text"),
        ({"steps": [["<doubt>", "x [/endthinking] y"]]}, "a tag inside a text"),
        ({"steps": [["<doubt>", " "]]}, "a step without a text"),
        ({"steps": [["<step>", "x"]]}, "does not use the strategy's own tag <doubt>"),
        ({"answer": "<step> 7"}, "'answer' holds a tag"),
        ({"prompt": "x [thinking]"}, "'prompt' holds a tag"),
        ({"prompt": "x \ud800"}, "half a character"),
        ({"strategy": "bayesian"}, "'strategy' is another"),
        ({"steps": [["<doubt>", "x\udfff"]]}, "half a character"),
    ],
)
def test_what_is_wrong_is_named_without_its_value(change, told):
    with pytest.raises(RowError, match=told):
        written_row({**FACT, **change}, "self_doubt", "s", WORDS)


@pytest.mark.parametrize(
    "reasoning, told",
    [
        (None, "'steps' is missing"),
        ("3 + 4", "is not one thought"),
        ("[thinking]<doubt> x", "is not one thought"),
        ("[thinking]<doubt> x <reason> y[/endthinking]", "does not have: <reason>"),
        ("<think><doubt> x</think>", "does not have: <think>"),
        ("[thinking]<step> x[/endthinking]", "own tag <doubt>"),
    ],
)
def test_a_reasoning_text_is_held_to_the_same(reasoning, told):
    fact = {name: value for name, value in FACT.items() if name != "steps"} | {"reasoning": reasoning}
    with pytest.raises(RowError, match=told):
        written_row(fact, "self_doubt", "s", WORDS)


@pytest.mark.parametrize("name", PRESETS)
def test_the_examples_that_a_model_is_shown_are_good_rows(name):
    words = vocabulary(name)
    assert set(STRATEGY_TEXTS) == set(STRATEGIES)
    for strategy in words.tag_of:
        shown = json.loads(json_request(strategy, 3, words, 1).rpartition("\n")[2])
        row = written_row(shown, strategy, "s", words)
        assert words.read(row.reasoning).inside == words.read(words.write(example_steps(strategy, words))).inside


def test_requests_of_a_strategy_differ_in_their_topics():
    assert len({json_request("mece", 3, WORDS, number) for number in range(20)}) == 20
    assert json_request("mece", 3, WORDS, 7) == json_request("mece", 3, WORDS, 7)


ROWS = [{"prompt": str(at), "steps": [["<step>", 'a {brace} [and] "quotes"']]} for at in range(4)]
TEXT = json.dumps(ROWS)


@pytest.mark.parametrize(
    "text, kept, reasons",
    [
        (TEXT, [0, 1, 2, 3], []),
        (f"Here they are:\n```json\n{json.dumps(ROWS, indent=1)}\n```\nDone.", [0, 1, 2, 3], []),
        (json.dumps({"rows": ROWS}), [0, 1, 2, 3], []),
        ("\n".join(map(json.dumps, ROWS)), [0, 1, 2, 3], []),
        (TEXT[:-30], [0, 1, 2], ["cut off in the middle"]),
        (json.dumps({"rows": ROWS})[:-30], [0, 1, 2], ["cut off in the middle"]),
        (TEXT.replace('"prompt": "1", ', '"prompt": 1", '), [0, 2, 3], ["malformed JSON"]),
        (TEXT.replace('[["<step>", ', '[{"tag": 1}, {"tag": 2}, x', 1), [1, 2, 3], ["malformed JSON"]),
        (TEXT.replace('"prompt": "3", ', "'prompt': 3, "), [0, 1, 2], ["malformed JSON"]),
        ("I cannot do that.", [], ["no JSON object"]),
        ("[]", [], ["no JSON object"]),
        ("[" * 5000 + "{" * 5000, [], ["cut off in the middle"]),
    ],
)
def test_what_can_be_read_is_read(text, kept, reasons):
    assert read_objects(text) == ([ROWS[at] for at in kept], reasons)


def test_every_cut_saves_every_object_before_it():
    ends = [at for at in range(len(TEXT) + 1) if TEXT[:at].endswith("]]}")]
    for length in range(len(TEXT) + 1):
        found, _ = read_objects(TEXT[:length])
        assert found == ROWS[: sum(end <= length for end in ends)]


def test_rows_are_kept_and_counted(tmp_path):
    store = RowStore(tmp_path, WORDS, "openrouter")
    facts = [FACT, {**FACT, "prompt": "what is  3 + 4? "}, {**FACT, "answer": ""}, {**FACT, "prompt": "b"}]
    kept, refused = store.add([*facts, {**FACT, "prompt": "c"}], "self_doubt", "s", most=2)
    assert kept == 2 == store.count("s", "self_doubt") and store.count("s", "mece") == 0
    assert refused == {
        "a row with this prompt is there": 1,
        "field 'answer' is empty": 1,
        "more rows than were asked for": 1,
    }
    assert store.holds("What is 3 + 4?") and not store.holds("c")
    store.close()
    assert read_rows(tmp_path / "rows.jsonl", WORDS)[0] == store.rows
    again = RowStore(tmp_path, WORDS, "openrouter")
    assert again.rows == store.rows and again.count("s", "self_doubt") == 2 and again.holds("b")


def test_a_torn_line_is_cut_off_and_nothing_else(tmp_path):
    store = RowStore(tmp_path, WORDS, "openrouter")
    store.add([FACT, {**FACT, "prompt": "naïv"}], "self_doubt", "s")
    store.note(event="finished", source="s", strategy="self_doubt", asked=2, accepted=2)
    store.close()
    whole = {name: (tmp_path / name).read_bytes() for name in ("rows.jsonl", "journal.jsonl")}
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content + content.split(b"\n")[-2][:-9])
    for _ in range(2):
        RowStore(tmp_path, WORDS, "openrouter").close()
        assert {name: (tmp_path / name).read_bytes() for name in whole} == whole
    assert statistics(tmp_path)[0] | {"dollars": 0} == {
        **{"source": "s", "strategy": "self_doubt", "requests": 1, "asked": 2, "accepted": 2},
        **{"tokens_in": 0, "tokens_out": 0, "dollars": 0, "rejected": {}, "faults": {}},
    }


def test_a_line_that_is_no_row_is_named(tmp_path):
    RowStore(tmp_path, WORDS, "openrouter").close()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match=r"rows.jsonl, line 1: field 'reasoning' is missing.* Take the line out"):
        RowStore(tmp_path, WORDS, "openrouter")
    (tmp_path / "rows.jsonl").write_text("{}x\n")
    with pytest.raises(DataError, match=r"rows.jsonl, line 1: is no JSON"):
        RowStore(tmp_path, WORDS, "openrouter")


def test_a_folder_has_one_maker_at_a_time_and_for_good(tmp_path):
    store = RowStore(tmp_path, WORDS, "openrouter")
    with pytest.raises(DataError, match="another process is writing"):
        RowStore(tmp_path, WORDS, "openrouter")
    store.close()
    with pytest.raises(DataError, match="folder of another maker"):
        RowStore(tmp_path, WORDS, "local")
    RowStore(tmp_path, WORDS, "openrouter").close()
    (tmp_path / "journal.jsonl").unlink()
    store = RowStore(tmp_path, WORDS, "local")
    store.add([FACT], "self_doubt", "s")
    store.close()
    (tmp_path / "journal.jsonl").unlink()
    with pytest.raises(DataError, match=r"holds rows\.jsonl but no journal"):
        RowStore(tmp_path, WORDS, "local")
    with pytest.raises(DataError, match="cannot be kept there"):
        RowStore(tmp_path / "rows.jsonl", WORDS, "local")
