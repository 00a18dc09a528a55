"""Mixes and curriculum against the numbers of METHOD."""

import pytest

from forgelib.data import CATEGORIES, CURRICULUM, SPECIALISTS, TRUNK_MIX, DataError
from forgelib.data.catalogue import CATALOGUE
from forgelib.data.mixes import stage_datasets, stage_weights


def test_every_mix_is_a_share_of_each_category():
    for mix in [TRUNK_MIX, *(one.mix for one in SPECIALISTS.values())]:
        assert set(mix) == set(CATEGORIES)
        assert sum(mix.values()) == pytest.approx(1)


def test_specialists_carry_the_given_figures():
    assert {name: (one.act_threshold, one.ltm_tokens) for name, one in SPECIALISTS.items()} == {
        "reasoning": (0.95, 2048),
        "memory": (0.90, 8192),
        "speed": (0.99, 2048),
    }
    assert SPECIALISTS["reasoning"].mix["math"] == SPECIALISTS["memory"].mix["language"] == 0.4
    assert SPECIALISTS["speed"].mix["commonsense"] == 0.4


def test_the_curriculum_reads_each_dataset_from_one_stage_on():
    assert sorted(stage_datasets("advanced")) == sorted(CATALOGUE)
    assert {"gsm8k", "svamp", "mbpp"} <= set(stage_datasets("foundation"))
    assert {"arc_easy", "arc_challenge", "piqa", "wikitext"} <= set(CURRICULUM["reasoning"].adds)
    assert {"hotpotqa", "drop", "hellaswag", "fineweb_edu"} <= set(CURRICULUM["advanced"].adds)
    epochs = [epoch for stage in CURRICULUM.values() for epoch in range(stage.epochs[0], stage.epochs[1] + 1)]
    assert epochs == list(range(1, 11))


def test_a_stage_without_a_category_rescales_the_mix_and_says_so():
    weights, note = stage_weights(SPECIALISTS["reasoning"].mix, {"math", "code"})
    assert weights == pytest.approx({"math": 0.8, "code": 0.2})
    assert "qa, commonsense, language" in note and "math 0.8" in note
    weights, note = stage_weights(TRUNK_MIX, set(CATEGORIES))
    assert weights == pytest.approx(TRUNK_MIX) and note == ""


def test_a_mix_with_nothing_to_read_is_refused():
    with pytest.raises(DataError, match="nothing to train on"):
        stage_weights({"math": 1.0}, {"code"})
    with pytest.raises(DataError, match="foundation, reasoning, advanced"):
        stage_datasets("final")
