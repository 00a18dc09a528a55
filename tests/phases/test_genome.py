"""Genomes: every one can be merged, what does not shape the child is silent, and diversity counts recipe bits."""

import json
import random
from dataclasses import replace

import pytest
import torch

from forgelib.merge import RECIPES, recipe
from forgelib.phases.genome import (
    DEEPEST_CHAOS,
    EXPRESSED,
    RANGES,
    STEP_AGAIN,
    Genome,
    chaos,
    default_genome,
    diversity,
    linear_genome,
    mutated,
    random_genome,
)

LAYERS = 5


def drawn(n: int = 30, seed: int = 0, n_models: int = 3) -> list[Genome]:
    dice = random.Random(seed)
    return [random_genome(dice, n_models, LAYERS) for _ in range(n)]


def assert_mergeable(genome: Genome, n_models: int) -> None:
    assert genome.bits in RECIPES and len(genome.pattern) == LAYERS and set(genome.pattern) <= set("ABC")
    assert all(low <= getattr(genome, name) <= high for name, (low, high, _) in RANGES.items())
    assert 0 <= genome.dials < n_models
    assert genome.genes.pattern == genome.pattern, "the merge room takes these genes: it refuses bad ones"


@pytest.mark.parametrize("n_models", [2, 3, 5])
def test_every_genome_can_be_merged(n_models):
    dice = random.Random(1)
    for genome in [*drawn(20, n_models=n_models), *(default_genome(bits, n_models, LAYERS) for bits in RECIPES)]:
        assert_mergeable(genome, n_models)
        for _ in range(20):
            genome = mutated(genome, dice)
            assert_mergeable(genome, n_models)


def test_the_given_recipes_are_eight_different_children_as_method_has_them():
    given = [default_genome(bits, 3, LAYERS) for bits in RECIPES]
    assert len({genome.key for genome in given}) == 8
    for genome in given:
        assert (genome.t, genome.drop_rate, genome.top_k, genome.scale) == (0.5, 0.9, 0.2, 1.0)
        assert genome.pattern == "ABCAB" and genome.of == ()


def test_the_linear_genome_is_one_technique_everywhere():
    genome = linear_genome(3, LAYERS, dials=2)
    assert genome.bits[0] == "0" and set(genome.pattern) == {"A"} and genome.dials == 2


def test_a_mutation_is_always_another_child_and_keeps_most_of_its_parent():
    dice = random.Random(2)
    kept = 0
    for genome in drawn():
        child = mutated(genome, dice)
        assert child.key != genome.key
        kept += sum(a == b for a, b in zip(child.bits, genome.bits, strict=True))
    assert 0.6 < kept / 90 < 0.95, "bits flip, but few of them"


def test_the_same_dice_give_the_same_children():
    def family(seed: int) -> list[str]:
        dice = random.Random(seed)
        genomes = [random_genome(dice, 3, LAYERS) for _ in range(4)]
        return [g.key for g in (*genomes, mutated(genomes[0], dice), chaos(genomes[:3], dice, LAYERS))]

    assert family(3) == family(3) and not set(family(3)) & set(family(4))


@pytest.mark.parametrize("bits", RECIPES)
def test_only_genes_that_shape_the_child_are_in_its_key(bits):
    genome = default_genome(bits, 3, LAYERS)
    loud = set().union(*(EXPRESSED[i][int(bit)] for i, bit in enumerate(bits)))
    changes = {"t": 0.1, "drop_rate": 0.3, "top_k": 0.7, "pattern": "CBACB", "mask_seed": 9}
    for name, value in changes.items():
        changed = replace(genome, **{name: value}).key != genome.key
        assert changed == (name in loud), f"{name} in recipe {bits}"
    assert replace(genome, dials=1).key != genome.key and replace(genome, of=(genome,)).key != genome.key


@pytest.mark.parametrize("pattern", ["AAAAA", "BBBBB", "CCCCC", "ABCAB"])
@pytest.mark.parametrize("bits", RECIPES)
def test_a_gene_changes_the_key_where_it_changes_the_child(bits, pattern):
    """Layers of one letter leave the other stage without a say, with all its genes."""
    torch.manual_seed(0)
    names = ["embed.weight", *(f"layers.{i}.weight" for i in range(LAYERS))]
    *parents, trunk = ({name: torch.randn(12, 8) for name in names} for _ in range(4))
    genome = replace(default_genome(bits, 3, LAYERS), pattern=pattern, drop_rate=0.5, top_k=0.5)
    child = recipe(bits).merge(parents, trunk, genome.genes)
    emphasis = ((2.0, 0.5, 1.0),) * (LAYERS + 2)
    changes = {"t": 0.1, "drop_rate": 0.3, "top_k": 0.7, "scale": 1.5, "mask_seed": 9, "weights": (0.5, 0.3, 0.2)}
    for name, value in (*changes.items(), ("emphasis", emphasis)):
        other = replace(genome, **{name: value})
        merged = recipe(bits).merge(parents, trunk, other.genes)
        same = all(torch.equal(merged[one], child[one]) for one in names)
        assert (other.key == genome.key) == same, name


def test_masks_that_drop_nothing_are_silent():
    calm = replace(default_genome("000", 3, 2), pattern="BB", drop_rate=0.0)
    assert replace(calm, mask_seed=7).key == calm.key != replace(calm, drop_rate=0.1).key
    assert replace(calm, drop_rate=0.1, mask_seed=7).key != replace(calm, drop_rate=0.1).key


def test_a_step_that_helped_is_taken_again():
    before = replace(default_genome("000", 3, LAYERS), drop_rate=0.9, scale=1.0)
    here = replace(before, drop_rate=0.7, scale=1.2, weights=(0.2, 0.3, 0.5))
    children = [mutated(here, random.Random(seed), before) for seed in range(300)]
    far = [(0.7 - child.drop_rate) / 0.2 for child in children]
    on = [child for child, f in zip(children, far, strict=True) if f > 0.4 and abs(child.scale - 1.2 - 0.2 * f) < 1e-3]
    assert abs(len(on) / 300 - STEP_AGAIN) < 0.1
    for child in on:
        assert child.weights[2] > 0.5 and child.bits == here.bits
        assert_mergeable(child, 3)


def test_json_gives_the_same_genome_back():
    dice = random.Random(4)
    one = chaos(drawn(3), dice, LAYERS)
    two = chaos([one, *drawn(2, seed=9)], dice, LAYERS)
    for genome in (*drawn(5), one, two):
        again = Genome.from_dict(json.loads(json.dumps(genome.to_dict())))
        assert again == genome and again.key == genome.key


def test_chaos_merges_the_losers_and_never_grows_deeper_than_allowed():
    dice = random.Random(5)
    losers = drawn(3)
    child = chaos(losers, dice, LAYERS)
    assert child.of == tuple(losers) and child.depth == 1 and len(child.weights) == 3
    assert_mergeable(child, 3)
    deepest = 0
    for _ in range(8):
        child = chaos([child, *drawn(2, seed=6)], dice, LAYERS)
        deepest = max(deepest, child.depth)
    assert deepest == DEEPEST_CHAOS and child.of[1:] == tuple(drawn(2, seed=6))


def test_diversity_counts_differing_bits():
    given = [default_genome(bits, 3, LAYERS) for bits in RECIPES]
    assert diversity(given) == pytest.approx(4 / 7)
    assert diversity(given[:1] * 4) == 0
    assert diversity([given[0], given[7]]) == 1
    assert diversity([given[0], given[0], given[1]]) == pytest.approx(2 / 9)
