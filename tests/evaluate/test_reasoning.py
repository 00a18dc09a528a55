"""How a model reasons: answers by generation, planted slips, tags used - on a model whose texts are known."""

import re
from dataclasses import replace

import pytest

from forgelib.data import vocabulary
from forgelib.data.traces import procedural_rows
from forgelib.evaluate import reasoning
from forgelib.evaluate.reasoning import REPAIRED, planted, reason, token_usage

WORDS = vocabulary("forge-12")
ROWS = procedural_rows(60, WORDS, seed=0)


@pytest.fixture
def writes(monkeypatch):
    """A model that writes what a function makes of each prompt."""

    def install(write):
        monkeypatch.setattr(reasoning, "greedy_texts", lambda m, t, prompts, **_: [write(p) for p in prompts])

    return install


def true_continuation(prompt):
    """What the true trace goes on with, planted slip or not."""
    row = next(row for row in ROWS if prompt.startswith(row.prompt))
    return f" {row.reasoning} {row.answer}" if prompt == row.prompt else f"<step> mended[/endthinking] {row.answer}"


def test_true_thoughts_are_right_in_every_strategy(writes):
    writes(true_continuation)
    found = reason(None, None, WORDS, ROWS)
    assert found.correct.all() and set(found.by_strategy()) == {row.strategy for row in ROWS}
    assert sum(len(correct) for correct in found.by_strategy().values()) == len(ROWS)


def test_a_wrong_answer_and_an_open_thought_count_as_wrong(writes):
    writes(lambda prompt: true_continuation(prompt) + "0")
    assert not reason(None, None, WORDS, ROWS).correct.any()
    writes(lambda prompt: true_continuation(prompt).replace("[/endthinking]", ""))
    assert not reason(None, None, WORDS, ROWS).correct.any()


def test_the_slip_strategies_are_asked_to_go_on_from_a_false_sum(writes):
    prompts = []
    writes(lambda prompt: prompts.append(prompt) or "")
    reason(None, None, WORDS, ROWS)
    begun = [prompt for prompt in prompts if "[thinking]" in prompt]
    assert len(begun) == sum(row.strategy in REPAIRED for row in ROWS) == 12
    for prompt in begun:
        a, sign, b, claimed = re.match(r"(\d+)([-+])(\d+)=(\d+)$", prompt.partition("<step>")[2]).groups()
        assert int(claimed) == (int(a) + int(b) if sign == "+" else int(a) - int(b)) + 1


def test_a_model_that_copies_the_slip_onward_is_wrong(writes):
    """It looks like reasoning, and takes the planted result for granted."""

    def copy(prompt):
        row = next(row for row in ROWS if prompt.startswith(row.prompt))
        return (
            f"<doubt> fine[/endthinking] {int(row.answer) + 1}" if "[thinking]" in prompt else true_continuation(prompt)
        )

    writes(copy)
    found = reason(None, None, WORDS, ROWS).by_strategy()
    assert all(not found[name].any() for name in REPAIRED)
    assert all(correct.all() for name, correct in found.items() if name not in REPAIRED)


def test_without_tags_a_slip_can_be_planted_too():
    words = vocabulary("startofthought")
    row = procedural_rows(1, words, seed=0, strategies=["self_doubt"])[0]
    start = planted(row)
    assert start.startswith(words.begin) and start.count("=") == 1
    assert planted(replace(row, reasoning=words.write([("", "no sum here")]))) == ""


def test_usage_counts_only_rows_where_the_tag_applies(writes):
    writes(true_continuation)
    usage = token_usage(reason(None, None, WORDS, [r for r in ROWS if r.strategy not in REPAIRED]), WORDS)
    assert usage == {"thinking": 1.0, "step": 1.0, "mece": 1.0, "falsify": 1.0}
    writes(lambda prompt: true_continuation(prompt).replace("<falsify>", "<step>"))
    assert token_usage(reason(None, None, WORDS, ROWS), WORDS)["falsify"] == 0.0
    writes(lambda prompt: " 7")
    assert token_usage(reason(None, None, WORDS, ROWS), WORDS)["thinking"] == 0.0, "what was planted is not the model's"


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no reasoning rows"):
        reason(None, None, WORDS, [])
