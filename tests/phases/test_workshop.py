"""The workshop on tiny models, saved and read back: what it measures is what a hand would, anywhere and every time."""

import os
import random
import signal
import threading
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from tiny_family import N_LAYERS, THRESHOLDS, cognate, llama, save_family, texts
from transformers import AutoModelForCausalLM

from forgelib.merge import RECIPES, MergeRefused, recipe
from forgelib.phases import workshop
from forgelib.phases.evomerge import references
from forgelib.phases.genome import chaos, default_genome, linear_genome, random_genome
from forgelib.phases.population import LocalPopulation, WorkerDied
from forgelib.phases.workshop import Plan, Workshop

DEFAULTS = [default_genome(bits, 3, N_LAYERS) for bits in RECIPES]
LINEAR = linear_genome(3, N_LAYERS)


@pytest.fixture(scope="module", params=[llama, cognate], ids=["llama", "cognate"])
def plan(request, tmp_path_factory) -> Plan:
    return save_family(tmp_path_factory.mktemp("family"), request.param)


@pytest.fixture(scope="module")
def shop(plan) -> Workshop:
    return Workshop(plan)


@pytest.fixture(scope="module")
def cognate_shop(tmp_path_factory) -> Workshop:
    return Workshop(save_family(tmp_path_factory.mktemp("family"), cognate, n_texts=30))


def some_genomes(n: int = 5, seed: int = 0) -> list:
    dice = random.Random(seed)
    drawn = [random_genome(dice, 3, N_LAYERS) for _ in range(n)]
    return [*drawn, chaos(drawn[:3], dice, N_LAYERS)]


def read_by_hand(model, texts) -> tuple[np.ndarray, np.ndarray]:
    """Losses and answers, text by text, each alone and without padding."""
    losses, right = np.empty(len(texts)), np.full(len(texts), np.nan)
    for batch in texts.batches:
        for row, number in enumerate(batch.rows):
            kept = batch.attention_mask[row].bool()
            ids, answer = batch.input_ids[row][kept], batch.is_answer[row][kept]
            with torch.no_grad():
                log_p = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
            losses[number] = -log_p.gather(1, ids[1:, None]).mean()
            if answer.any():
                right[number] = bool((log_p.argmax(-1) == ids[1:])[answer[1:]].all())
    return losses, right


def two_terms(losses: np.ndarray, right: np.ndarray, category: np.ndarray) -> np.ndarray:
    """Logs of inverse perplexity and of accuracy, means over categories."""
    asked = ~np.isnan(right)
    shares = [(right[asked & (category == c)].sum() + 1) / ((asked & (category == c)).sum() + 2) for c in (0, 1)]
    return np.array([-np.mean([losses[category == c].mean() for c in (0, 1)]), np.mean(np.log(shares))])


def test_fitness_is_what_a_hand_computes(tmp_path):
    plan = save_family(tmp_path, llama, n_texts=30)
    parents = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in plan.parents]
    child = AutoModelForCausalLM.from_pretrained(plan.parents[1]).eval()
    states = [parent.state_dict() for parent in parents]
    child.load_state_dict({name: sum(state[name] for state in states) / 3 for name in states[0]})
    logs = [two_terms(*read_by_hand(model, plan.texts), plan.texts.category) for model in (*parents, child)]
    centre = np.mean(logs[:3], axis=0)
    weights = np.array([0.5, 0.3])  # and 0.2 for speed and memory, which are the same for all
    worth = [np.exp(log - centre) @ weights + 0.2 for log in logs]
    found = Workshop(plan).measure(LINEAR)
    assert found["fitness"] == pytest.approx(worth[3] / np.mean(worth[:3]), abs=1e-5)
    assert found["terms"]["perplexity"] == pytest.approx(np.exp(logs[3] - centre)[0], abs=1e-5)
    assert found["terms"]["speed"] == found["terms"]["memory"] == 1 and found["replaced"] == ""
    assert abs(found["fitness"] - 1) > 1e-3, "the mean is another model"


def test_the_parents_score_one_on_average(shop):
    fitness = [shop.yardstick.fitness(scores) for scores in shop.yardstick.parents]
    assert np.mean(fitness) == pytest.approx(1, abs=1e-12) and np.ptp(fitness) > 1e-3


def test_measuring_leaves_no_trace(shop, plan):
    """The same bits whatever was measured before: no weight and no dial of one child is left in the next."""
    genomes = [*DEFAULTS, *some_genomes()]
    first = [shop.measure(genome) for genome in genomes]
    again = [shop.measure(genome) for genome in reversed(genomes)][::-1]
    assert first == again
    assert first[-1] == Workshop(plan).measure(genomes[-1]), "a workshop that measured nothing else"
    assert len({result["fitness"] for result in first}) > 8 and not any(result["replaced"] for result in first)


def test_the_threads_of_the_caller_change_nothing_and_are_given_back(shop):
    expected = shop.measure(DEFAULTS[0])
    torch.set_num_threads(2)
    assert shop.measure(DEFAULTS[0]) == expected and torch.get_num_threads() == 2


def test_the_child_that_is_measured_is_the_merge(shop):
    for genome in DEFAULTS:
        shop.scores(genome)
        merged = recipe(genome.bits).merge(shop.weights, shop.trunk, genome.genes)
        loaded = shop.model.state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in merged.items())


def test_siblings_of_a_chaos_child_are_built_first(shop):
    linear = shop.build(LINEAR)
    equal = chaos([LINEAR] * 3, random.Random(0), N_LAYERS)
    for genome in (replace(equal, bits=bits, pattern="A" * N_LAYERS) for bits in ("000", "100")):
        child = shop.build(genome)
        assert all(torch.equal(child[name], linear[name]) for name in linear), "merge(A, A, A) = A"
    losers = DEFAULTS[1:4]
    genome = replace(chaos(losers, random.Random(0), N_LAYERS), bits="010")
    by_hand = recipe("010").merge([shop.build(one) for one in losers], shop.trunk, genome.genes)
    assert all(torch.equal(tensor, by_hand[name]) for name, tensor in shop.build(genome).items())
    deep = chaos([genome, *losers[:2]], random.Random(1), N_LAYERS)
    assert shop.measure(deep)["replaced"] == ""


def break_the_child(shop, monkeypatch, genome, change) -> dict:
    """What the workshop measures when the genome's weights are changed by `change(weights)`."""
    real = Workshop.build

    def build(self, one):
        weights = real(self, one)
        if one == genome:
            change(weights)
        return weights

    monkeypatch.setattr(Workshop, "build", build)
    return shop.measure(genome)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda w: w["model.layers.1.mlp.up_proj.weight"][3, 2].fill_(float("nan")), "up_proj.weight holds NaN or Inf"),
        (lambda w: w["model.layers.0.mlp.up_proj.weight"][0, 0].fill_(float("inf")), "up_proj.weight holds NaN or Inf"),
        (lambda w: w["model.embed_tokens.weight"].fill_(0.1), "model.embed_tokens.weight has zero variance"),
        (lambda w: w["lm_head.weight"].fill_(3e38), "lm_head.weight has zero variance"),
        (lambda w: w["lm_head.weight"].mul_(1e38), "forward pass gives numbers that are not finite"),
    ],
    ids=["nan", "inf", "constant", "huge constant", "overflow"],
)
def test_a_broken_child_counts_as_linear_and_says_why(tmp_path, monkeypatch, change, words):
    shop = Workshop(save_family(tmp_path, llama))
    linear = shop.measure(LINEAR)
    found = break_the_child(shop, monkeypatch, DEFAULTS[2], change)
    assert words in found["replaced"]
    assert (found["fitness"], found["terms"]) == (linear["fitness"], linear["terms"])


def test_what_is_constant_in_the_trunk_may_stay_constant(tmp_path):
    shop = Workshop(save_family(tmp_path, llama))
    shop.weights = [dict(weights) for weights in shop.weights]
    shop.trunk = dict(shop.trunk)
    for weights in (*shop.weights, shop.trunk):
        weights["model.norm.weight"] = torch.ones_like(weights["model.norm.weight"])
    assert shop.measure(DEFAULTS[0])["replaced"] == ""


def test_a_race_is_a_measurement_on_its_own_rows(shop, plan):
    other = Workshop(replace(plan, texts=plan.race, race=None))
    for genome in some_genomes():
        assert shop.measure(genome, race=True) == other.measure(genome) != shop.measure(genome)
    with pytest.raises(ValueError, match="no rows"):
        other.measure(LINEAR, race=True)


def test_the_size_of_a_batch_decides_the_time_and_not_the_fitness(plan):
    """Speed is counted with the padding that a batch is read with, the same for parents and child."""
    one_by_one, at_once = (replace(plan, texts=texts(12, tokens_per_batch=n)) for n in (1, 4096))
    assert len(one_by_one.texts.batches) == 12 and len(at_once.texts.batches) == 1
    first, second = Workshop(one_by_one), Workshop(at_once)
    for genome in (LINEAR, *DEFAULTS[2:5]):
        a, b = first.scores(genome), second.scores(genome)
        assert np.allclose(a.losses, b.losses, atol=2e-5) and np.array_equal(a.right, b.right, equal_nan=True)


def test_the_references_are_the_parents_and_their_mean(shop):
    references_of = [member.genome for member in references(3, N_LAYERS)]
    for i, scores in enumerate(shop.yardstick.parents):
        found = shop.scores(references_of[i])
        assert np.allclose(found.losses, scores.losses, atol=1e-4)
        assert found.operations == pytest.approx(scores.operations, rel=1e-3)
        mean = shop.scores(linear_genome(3, N_LAYERS, i))
        assert np.allclose(shop.scores(references_of[3 + i]).losses, mean.losses, atol=1e-4)


def test_parents_that_do_not_fit_together_are_refused_not_replaced(shop, tmp_path):
    other = save_family(tmp_path, llama if "cognate" in str(type(shop.model)).lower() else cognate)
    with pytest.raises(MergeRefused):
        Workshop(replace(shop.plan, trunk=other.trunk)).measure(DEFAULTS[0])


def test_the_dials_reach_the_model(cognate_shop):
    costs = []
    for dials, threshold in enumerate(THRESHOLDS):
        costs.append(cognate_shop.scores(linear_genome(3, N_LAYERS, dials)).operations)
        assert cognate_shop.model.config.act_threshold == threshold
    assert costs[0] < costs[1] < costs[2]
    speed = [cognate_shop.measure(linear_genome(3, N_LAYERS, dials))["terms"]["speed"] for dials in range(3)]
    assert speed[0] / speed[2] == pytest.approx(costs[2] / costs[0])


def test_a_chaos_child_takes_the_dials_of_the_loser_it_names(cognate_shop):
    losers = [linear_genome(3, N_LAYERS, dials) for dials in (2, 0, 1)]
    child = chaos(losers, random.Random(0), N_LAYERS)
    for place, parent in ((0, 2), (1, 0), (2, 1)):
        genome = replace(child, dials=place)
        assert cognate_shop.dials_for(genome)["act_threshold"] == THRESHOLDS[parent]
        deeper = replace(chaos([genome] * 3, random.Random(1), N_LAYERS), dials=1)
        assert cognate_shop.dials_for(deeper)["act_threshold"] == THRESHOLDS[parent]


def test_a_population_of_one_worker_measures_in_this_process(shop, plan):
    genomes = some_genomes()
    with LocalPopulation(plan, 1) as population:
        assert population(genomes) == [shop.measure(genome) for genome in genomes]
        assert population(genomes, race=True) == [shop.measure(genome, race=True) for genome in genomes]


@pytest.mark.slow
def test_worker_processes_give_the_same_numbers_and_die_with_a_word(tmp_path):
    plan = save_family(tmp_path, cognate)
    genomes = [*DEFAULTS, *some_genomes()]
    shop = Workshop(plan)
    expected = [shop.measure(genome) for genome in genomes]
    population = LocalPopulation(plan, 2)
    with pytest.raises(RuntimeError, match="with"):
        population(genomes)
    with population:
        assert population(genomes) == expected
        assert population(genomes[3:6]) == expected[3:6]
        assert population(genomes[:4], race=True) == [shop.measure(genome, race=True) for genome in genomes[:4]]
        workers = [p for p in psutil.Process().children() if p.pid in {w.pid for w in population._processes}]
        assert len(workers) == 2
        threading.Timer(0.2, os.kill, [workers[0].pid, signal.SIGKILL]).start()
        with pytest.raises(WorkerDied, match="fewer workers"):
            population(genomes * 40)
        assert not any(worker.is_running() for worker in workers)
        with pytest.raises(RuntimeError, match="no workers"):
            population(genomes)


@pytest.mark.slow
def test_what_a_worker_raises_is_raised_here_and_no_late_answer_is_taken_for_another(tmp_path):
    plan = save_family(tmp_path, llama)
    with LocalPopulation(plan, 2) as population:
        with pytest.raises(ValueError, match="bits = '12'"):
            population([DEFAULTS[0], replace(DEFAULTS[0], bits="12"), *DEFAULTS])
        with pytest.raises(RuntimeError, match="no workers"):
            population(DEFAULTS)
    missing = replace(plan, trunk=str(tmp_path / "nowhere"))
    with LocalPopulation(missing, 2) as population, pytest.raises(MergeRefused, match="nowhere"):
        population(DEFAULTS)


def test_children_are_merged_once_while_they_are_kept_and_are_the_same_when_merged_again(plan, monkeypatch):
    genomes = some_genomes()
    merges = []
    monkeypatch.setattr(workshop, "recipe", lambda bits: merges.append(bits) or recipe(bits))
    keeps, forgets = Workshop(plan), Workshop(plan)
    kept = [keeps.build(genome) for genome in [*genomes, *reversed(genomes)]]
    assert len(merges) == len(genomes), "each once, the losers in the chaos child among them"
    one = sum(tensor.nbytes for tensor in kept[0].values())
    monkeypatch.setattr(workshop, "KEPT_BYTES", 2 * one)
    again = [forgets.build(genome) for genome in [*genomes, *reversed(genomes)]]
    assert len(forgets._built) == 2 and len(merges) > 2 * len(genomes)
    for a, b in zip(kept, again, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)
