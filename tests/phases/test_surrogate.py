"""The surrogate: it places children where their weights lie, and its guesses are better than the mean."""

import random
import statistics
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from fake_measure import Measure

from forgelib.merge import RECIPES, recipe
from forgelib.phases.evomerge import EvolutionConfig, evolve
from forgelib.phases.genome import Genome, chaos, default_genome, linear_genome, random_genome
from forgelib.phases.ledger import Ledger
from forgelib.phases.surrogate import Surrogate, position

N, LAYERS = 3, 2
NAMES = ["embed.weight", *(f"layers.{i}.weight" for i in range(LAYERS)), "recursion.0.weight"]
GROUPS = len(NAMES)


@cache
def models(size: int = 4000) -> tuple[list[dict], dict]:
    """Parents whose task vectors are orthogonal and of length one in each tensor, and their trunk."""
    torch.manual_seed(0)
    trunk = {name: torch.randn(size) for name in NAMES}
    parents = [{} for _ in range(N)]
    for name in NAMES:
        directions = torch.linalg.qr(torch.randn(size, N))[0]
        for parent, direction in zip(parents, directions.T, strict=True):
            parent[name] = trunk[name] + direction
    return parents, trunk


def merged(genome: Genome, size: int = 4000) -> dict:
    """The child's weights."""
    parents, trunk = models(size)
    made_of = [merged(one, size) for one in genome.of] or parents
    return recipe(genome.bits).merge(made_of, trunk, genome.genes)


def coefficients(child: dict) -> np.ndarray:
    """[G, n], by projection."""
    parents, trunk = models()
    return np.array([[float((child[k] - trunk[k]) @ (p[k] - trunk[k])) for p in parents] for k in NAMES])


def placed(genome: Genome) -> np.ndarray:
    return position(genome, N)[: GROUPS * N].reshape(GROUPS, N)


@pytest.mark.parametrize("bits", [bits for bits in RECIPES if bits[1] == "0"])
def test_the_coefficients_are_where_the_merge_lies(bits):
    """Without masks, and where the trunk is long beside the task vectors: SLERP is straight, DFS halfway."""
    dice = random.Random(5)
    for _ in range(5):
        genome = replace(random_genome(dice, N, LAYERS, bits), drop_rate=0.0)
        assert np.abs(placed(genome) - coefficients(merged(genome))).max() < 0.02


@pytest.mark.parametrize("top_k", [0.05, 0.2, 0.3, 0.55, 1.0])
def test_ties_is_placed_exactly_for_equal_weights_and_nearly_for_others(top_k):
    genome = replace(default_genome("010", N, LAYERS), pattern="BB", top_k=top_k)
    assert np.abs(placed(genome) - coefficients(merged(genome))).max() < 0.04
    genome = replace(genome, weights=(0.2, 0.3, 0.5))  # the election favours the heavier ones more than that
    guess, true = placed(genome).ravel(), coefficients(merged(genome)).ravel()
    assert guess @ true / np.linalg.norm(guess) / np.linalg.norm(true) > 0.95


def test_a_child_of_children_lies_between_them():
    dice = random.Random(1)
    three = [random_genome(dice, N, LAYERS, "000") for _ in range(3)]
    child = replace(linear_genome(3, LAYERS), of=tuple(three))
    middle = sum(position(one, N)[: GROUPS * N] for one in three) / 3
    assert np.allclose(position(child, N)[: GROUPS * N], middle)
    assert np.isfinite(position(chaos(three, dice, LAYERS), N)).all()


def test_masks_add_noise_and_weights_of_one_do_not():
    wild = replace(default_genome("000", N, LAYERS), pattern="BB")
    calm = replace(wild, drop_rate=0.0)
    noise = slice(GROUPS * N, GROUPS * N + GROUPS)
    assert (position(wild, N)[noise] > 0.5).all() and (position(calm, N)[noise] == 0).all()
    assert (position(linear_genome(N, LAYERS), N)[noise] == 0).all()


def fitness(genome: Genome) -> float:
    """How near the merged weights themselves come to a goal; the surrogate sees only the genome."""
    parents, trunk = models(400)
    child, distance = merged(genome, 400), 0.0
    for k in NAMES:
        goal = trunk[k] + sum(c * (p[k] - trunk[k]) for c, p in zip((0.1, 0.4, 0.8), parents, strict=True))
        distance += float((child[k] - goal).square().sum())
    return 1.1 - 0.05 * distance


def test_guesses_are_far_better_than_the_mean_and_know_their_doubt():
    dice = random.Random(0)
    drawn = [random_genome(dice, N, LAYERS) for _ in range(120)]
    known, unknown = drawn[:60], drawn[60:]
    surrogate = Surrogate([*known], [fitness(g) for g in known], N)
    mean, deviation = surrogate.guess(unknown)
    true = np.array([fitness(g) for g in unknown])
    near = true > np.median(true)  # the worst are cut off at a floor
    assert np.corrcoef(mean[near], true[near])[0, 1] > 0.6
    _, doubt = surrogate.guess(known[:5])
    assert doubt.max() < deviation.mean()


@pytest.mark.slow
def test_a_search_with_it_gets_farther_by_the_same_number_of_children():
    def reached(drawn: int, seed: int) -> float:
        config = EvolutionConfig(N, LAYERS, seed, generations=12, patience=12, drawn=drawn)
        return list(evolve(config, Measure(fitness), Ledger()))[-1]["best"]

    gains = [reached(16, seed) - reached(1, seed) for seed in range(32)]
    # measured 0.0233 where the search began without the references; with them there is less left to gain
    mean, error = statistics.fmean(gains), statistics.stdev(gains) / len(gains) ** 0.5
    assert mean > 2 * error, gains


def test_children_of_one_fitness_are_no_error():
    genomes = [default_genome(bits, N, LAYERS) for bits in RECIPES]
    mean, _ = Surrogate(genomes, [1.0] * 8, N).guess(genomes)
    assert np.allclose(mean, 1.0)
