"""Thinking vocabularies: what was written is read back, and what is malformed is told."""

import pytest

from forgelib.data import STRATEGIES, vocabulary
from forgelib.data.thinking import VOCABULARIES

STEPS = [("<step>", "3 + 4 = 7"), ("<doubt>", "7 - 4 = 3"), ("<step>", "7 - 2 = 5")]


def test_the_given_presets():
    words = vocabulary("forge-12")
    assert words.tokens == (
        *("[thinking]", "[/endthinking]", "<step>", "<mece>", "<falsify>", "<expert>", "<orthogonal>", "<doubt>"),
        *("<bayesian>", "<multidomain>", "<correct>", "<uncertain>"),
    )
    assert set(words.tag_of) == set(STRATEGIES) and len(set(words.tag_of.values())) == 10
    eight = vocabulary("forge-8")
    given = {"<think>", "</think>", "<step>", "<reason>", "<mece>", "<falsify>", "<expert>", "<doubt>"}
    assert set(eight.tokens) == given and len(eight.tokens) == 8
    assert set(STRATEGIES) - set(eight.tag_of) == {"multidomain", "self_correction", "uncertainty"}
    assert vocabulary("startofthought").tokens == ("<|startofthought|>", "<|endofthought|>")
    with pytest.raises(ValueError, match=r"'forge-13' is unknown; there are forge-12"):
        vocabulary("forge-13")


@pytest.mark.parametrize("name", ["forge-12", "forge-8"])
def test_what_was_written_is_read_back(name):
    words = vocabulary(name)
    thought = words.read(f"Question: 3 + 4 - 2?\nAnswer: {words.write(STEPS)} 5")
    assert (list(thought.steps), thought.answer, thought.problems) == (STEPS, "5", ())
    assert thought.counts[words.begin] == thought.counts["<doubt>"] == 1 and thought.counts["<step>"] == 2


def test_a_vocabulary_without_tags_has_one_step():
    words = vocabulary("startofthought")
    thought = words.read(words.write([("", "three and four")]) + " 7")
    assert thought.steps == (("", "three and four"),) and thought.answer == "7" and thought.problems == ()


@pytest.mark.parametrize(
    "text, answer, problem",
    [
        ("[thinking]<step> a", "", "[thinking] is never closed"),
        ("a[/endthinking] 5", "a 5", "[/endthinking] without [thinking]"),
        ("[thinking]<step> a[thinking]<step> b[/endthinking] 5", "5", "[thinking] inside a thought"),
        ("[thinking]<step> a[/endthinking] 5<step>", "5", "<step> outside a thought"),
        ("[thinking]<step><doubt> a[/endthinking] 5", "5", "<step> without a text"),
        ("[/endthinking][/endthinking]", "", "[/endthinking] without [thinking]"),
    ],
)
def test_malformed_thoughts_are_told(text, answer, problem):
    thought = vocabulary("forge-12").read(text)
    assert problem in thought.problems and thought.answer == answer


def test_no_text_can_crash_the_reader():
    import random

    dice = random.Random(0)
    for words in VOCABULARIES.values():
        parts = [*words.tokens, "a", " ", "\n", words.begin[:3], words.end[1:], "<", "é"]
        for _ in range(500):
            thought = words.read("".join(dice.choices(parts, k=dice.randrange(12))))
            assert sum(thought.counts.values()) >= len(thought.steps) * bool(words.tags)


def test_without_a_thought_everything_is_the_answer():
    thought = vocabulary("forge-12").read(" 42 ")
    assert thought.inside is None and thought.answer == "42" and thought.steps == () and thought.problems == ()
