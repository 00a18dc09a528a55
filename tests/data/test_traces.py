"""The procedural maker: ten strategies, true line by line, no prompt twice, and a check that finds what is false."""

import itertools
import re
import time
from collections import Counter
from dataclasses import replace

import pytest

from forgelib.data import STRATEGIES, DataError, traces, vocabulary
from forgelib.data.thinking import VOCABULARIES
from forgelib.data.trace_checks import equations, false_spans, flaw
from forgelib.data.traces import procedural_rows

WORDS = vocabulary("forge-12")


@pytest.mark.slow
def test_twenty_thousand_rows_in_a_minute():
    started = time.process_time()
    rows = procedural_rows(20_000, WORDS, seed=0, difficulties=(1, 2, 3))
    assert time.process_time() - started < 60
    assert Counter(row.strategy for row in rows) == dict.fromkeys(STRATEGIES, 2000)
    assert len({row.prompt for row in rows}) == 20_000 and all(row.verified for row in rows)
    assert {row.difficulty for row in rows} == {1, 2, 3}
    assert 0.08 < sum(row.part == "validation" for row in rows) / 20_000 < 0.12


@pytest.mark.parametrize("name", VOCABULARIES)
def test_every_vocabulary_has_its_strategies(name):
    words = vocabulary(name)
    rows = procedural_rows(40, words, seed=1, strategies=list(words.tag_of))
    assert {row.strategy for row in rows} == set(words.tag_of)
    assert all(words.read(row.text).answer == row.answer and not words.read(row.text).problems for row in rows)


def test_training_and_validation_never_meet_whatever_the_seed():
    train = procedural_rows(1000, WORDS, seed=0, part="train")
    held = procedural_rows(300, WORDS, seed=1, part="validation")
    assert not {row.prompt for row in train} & {row.prompt for row in held}
    assert procedural_rows(100, WORDS, seed=0) == procedural_rows(100, WORDS, seed=0)
    assert procedural_rows(100, WORDS, seed=0) != procedural_rows(100, WORDS, seed=1)


def test_where_the_problems_end_there_are_fewer_rows():
    rows = procedural_rows(3000, WORDS, seed=0, strategies=["multidomain"])
    assert 800 < len(rows) <= 12 * 3 * 14 * 3, "one to three of an animal and of a thing"


@pytest.mark.parametrize("strategy", ["self_doubt", "self_correction"])
def test_half_of_the_steps_of_the_slip_strategies_are_slips_first_and_later_ones(strategy):
    rows = procedural_rows(400, WORDS, seed=0, strategies=[strategy])
    terms = [len(re.findall(r"[-+]", row.prompt.partition("?")[0])) for row in rows]
    wrong = [sum(not true for _, true in equations(row.reasoning)) for row in rows]
    assert 0.45 < sum(wrong) / sum(terms) < 0.55 and set(wrong) == {0, 1, 2}
    first = [not equations(row.reasoning)[0][1] for row in rows]
    assert 0.45 < sum(first) / 400 < 0.55


@pytest.mark.parametrize(
    "strategy", ["chain_of_thought", "self_doubt", "self_correction", "falsification", "uncertainty"]
)
def test_a_step_says_what_is_still_to_be_done(strategy):
    """What comes next is found in the step before, as far back as a short attention window reaches."""
    for row in procedural_rows(60, WORDS, seed=0, strategies=[strategy], difficulties=(1, 2)):
        steps = [text for _, text in WORDS.read(row.reasoning).steps]
        for before, after in itertools.pairwise(steps):
            for rest in re.findall(r",[-+]?(\d+)", before)[:1]:
                place = steps.index(after)
                assert any(rest in re.findall(r"\d+", step) for step in steps[place : place + 3]), row.text


def test_answers_are_not_guessed_by_a_constant():
    for strategy in STRATEGIES:
        answers = Counter(row.answer for row in procedural_rows(300, WORDS, seed=0, strategies=[strategy]))
        assert answers.most_common(1)[0][1] < 0.5 * answers.total(), strategy


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("level", [1, 2, 3])
def test_any_number_changed_in_a_trace_is_found(strategy, level):
    """Change one number (or verdict) of the thought or the answer: no such row passes.

    But for the result that <correct> does again: with another wrong one it is as real a slip, and repaired.
    """
    swaps = {"yes": "no", "no": "yes", "unknown": "yes", "high": "low", "low": "yes"}
    for row in procedural_rows(30, WORDS, seed=2, strategies=[strategy], difficulties=(level,)):
        assert flaw(row, WORDS) == ""
        for found in re.finditer(r"\d+|\b(yes|no|high|low)\b", row.reasoning):
            if (
                re.match(r"(,[-+\d]+)?<correct>", row.reasoning[found.end() :])
                and row.reasoning[found.start() - 1] == "="
            ):
                continue
            new = swaps.get(found.group()) or str(int(found.group()) + 1)
            text = row.reasoning[: found.start()] + new + row.reasoning[found.end() :]
            assert flaw(replace(row, reasoning=text), WORDS), (row.text, text)
        assert flaw(replace(row, answer=swaps.get(row.answer) or row.answer + "1"), WORDS)


def test_a_slip_without_repair_is_a_flaw():
    rows = procedural_rows(50, WORDS, seed=0, strategies=["self_correction"])
    row = next(row for row in rows if any(not true for _, true in equations(row.reasoning)))
    wrong = next(equation for equation, true in equations(row.reasoning) if not true)
    repair = next(t for tag, t in WORDS.read(row.reasoning).steps if tag == "<correct>")
    assert "not repaired" in flaw(replace(row, reasoning=row.reasoning.replace(repair, wrong)), WORDS)


def test_a_group_left_out_or_counted_twice_is_a_flaw():
    row = procedural_rows(1, WORDS, seed=0, strategies=["mece"])[0]
    first, second, *_ = WORDS.read(row.reasoning).steps
    for steps in ([first, ("<step>", f"0+{row.answer}={row.answer}")], [first, first, second]):
        assert "each once" in flaw(replace(row, reasoning=WORDS.write(steps)), WORDS)


def test_a_case_left_out_is_a_flaw():
    rows = procedural_rows(50, WORDS, seed=0, strategies=["uncertainty"])
    row = next(row for row in rows if row.answer == "unknown")
    shorter = WORDS.write(WORDS.read(row.reasoning).steps[:1])
    assert "1 cases are told, 2 are open" in flaw(replace(row, reasoning=shorter), WORDS)


def test_a_trace_without_its_own_tag_is_a_flaw():
    row = procedural_rows(1, WORDS, seed=0, strategies=["bayesian"])[0]
    assert "<bayesian> does not occur" in flaw(
        replace(row, reasoning=row.reasoning.replace("<bayesian>", "<step>")), WORDS
    )


def test_what_cannot_be_made_is_refused():
    with pytest.raises(DataError, match="strategy 'multidomain': vocabulary forge-8 has"):
        procedural_rows(10, vocabulary("forge-8"), seed=0)
    with pytest.raises(DataError, match="difficulty = 4: must be 1, 2 or 3"):
        procedural_rows(10, WORDS, seed=0, difficulties=(4,))


@pytest.mark.parametrize(
    "text, found",
    [
        ("3+4=8", [(0, 5)]),
        ("so 3 + 4 = 8.", [(3, 12)]),
        ("5*2+4=14", []),
        ("3+4=7 and 3+4=7.5", []),
        ("1,000+5=1,005", []),
        ("48/2=24, then 24/2=13", [(14, 21)]),
        ("12%5=3", [(0, 6)]),
        ("7/0=7", [(0, 5)]),
        ("2+2=5+1", []),
    ],
)
def test_false_equations_are_found_and_parts_of_longer_ones_are_not(text, found):
    assert false_spans(text) == found


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_trace_that_is_not_true_is_refused_in_every_vocabulary(name, monkeypatch):
    """Also where the written tags would not tell its strategy."""
    problem = next(iter(traces.MAKERS["orthogonal_wisdom"](0, 1)))
    wrong = replace(problem, answer=problem.answer + "1")
    monkeypatch.setitem(traces.MAKERS, "orthogonal_wisdom", lambda seed, level: iter([wrong]))
    with pytest.raises(DataError, match="orthogonal_wisdom trace is wrong"):
        procedural_rows(1, vocabulary(name), seed=0, strategies=["orthogonal_wisdom"])


def test_a_vocabulary_without_tags_cannot_be_read_back():
    words = vocabulary("startofthought")
    row = procedural_rows(1, words, seed=0, strategies=["mece"])[0]
    with pytest.raises(ValueError, match="cannot be told: write it in forge-12"):
        flaw(row, words)
