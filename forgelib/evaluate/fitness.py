"""Fitness of a merged model: perplexity, accuracy, speed and memory, each relative to the parents (METHOD, Phase 2).

    fitness = sum_k w_k r_k / (the parents' mean of the same sum)

r_k is 1 for a model that equals the parents' geometric mean in term k, larger is better:
    perplexity   geometric mean over categories of the parents' perplexity over the model's
    accuracy     geometric mean over categories of the model's share right over the parents', (right + 1) / (asked + 2)
    speed        the parents' multiply-adds per token over the model's, counted and not clocked
    memory       the parents' bytes of weights over the model's
so the parents score 1.0 on average, no unit leaks in, and equal speed or memory gives no free point. Speed and memory
are counts: noise cannot choose a winner. M models, C categories, n texts, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forgelib.core.sizing import size_class
from forgelib.evaluate.texts import Scores

#: METHOD, Phase 2: weights of perplexity, accuracy, speed and memory by size class.
WEIGHTS = {
    "tiny": {"perplexity": 0.5, "accuracy": 0.3, "speed": 0.1, "memory": 0.1},
    "small": {"perplexity": 0.4, "accuracy": 0.3, "speed": 0.2, "memory": 0.1},
    "medium": {"perplexity": 0.4, "accuracy": 0.3, "speed": 0.15, "memory": 0.15},
    "large": {"perplexity": 0.4, "accuracy": 0.3, "speed": 0.15, "memory": 0.15},
}
TERMS = ("perplexity", "accuracy", "speed", "memory")


def fitness_weights(n_parameters: int) -> dict[str, float]:
    """The given weights of the four terms for a model of this size."""
    return WEIGHTS[size_class(n_parameters).name]


@dataclass(frozen=True)
class Yardstick:
    """Fitness relative to fixed parents on fixed texts. `category` [n] is each text's category by number."""

    parents: Sequence[Scores]
    category: np.ndarray
    weights: Mapping[str, float]

    def fitness(self, model: Scores) -> float:
        """Fitness of one model; the parents' mean is 1."""
        return float(self.resampled([model], np.ones((1, len(self.category))))[0, 0])

    def terms(self, model: Scores) -> dict[str, float]:
        """r_k of each term, relative to the parents' geometric mean."""
        everything = np.ones((1, len(self.category)))
        found, reference = self._terms([model], everything), self._terms(self.parents, everything)
        return {name: float(np.exp(found[0, 0, k] - reference[0, :, k].mean())) for k, name in enumerate(TERMS)}

    def resampled(self, models: Sequence[Scores], counts: np.ndarray) -> np.ndarray:
        """Fitness [R, M] where text i is taken counts[r, i] times; parents are resampled with the models."""
        reference = self._terms(self.parents, counts)
        centre = reference.mean(axis=1, keepdims=True)
        weights = np.array([self.weights[name] for name in TERMS])
        one = (np.exp(reference - centre) @ weights).mean(axis=1, keepdims=True)
        return (np.exp(self._terms(models, counts) - centre) @ weights) / one

    def _terms(self, models: Sequence[Scores], counts: np.ndarray) -> np.ndarray:
        """log of what each term's ratio is made of, [R, M, 4]; larger is better."""
        perplexity = [-self._mean_over_categories(model.losses, counts) for model in models]
        accuracy = [self._log_accuracy(model.right, counts) for model in models]
        found = np.empty((len(counts), len(models), len(TERMS)))
        found[..., 0], found[..., 1] = np.stack(perplexity, 1), np.stack(accuracy, 1)
        found[..., 2] = [-np.log(model.operations) for model in models]
        found[..., 3] = [-np.log(model.n_bytes) for model in models]
        return found

    def _mean_over_categories(self, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        member = self._member(np.ones(len(values), bool))
        return ((counts * values) @ member / (counts @ member)).mean(axis=1)

    def _log_accuracy(self, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
        asked = ~np.isnan(right)
        if not asked.any():
            return np.zeros(len(counts))
        member = self._member(asked)
        shares = ((counts * np.where(asked, right, 0)) @ member + 1) / (counts @ member + 2)
        return np.log(shares).mean(axis=1)

    def _member(self, chosen: np.ndarray) -> np.ndarray:
        """[n, C] 1 where a chosen text is of the category; categories without any are left out."""
        numbers = np.unique(self.category[chosen])
        return ((self.category[:, None] == numbers) & chosen[:, None]).astype(float)


def resamples(category: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """Bootstrap counts [R, n], drawn within each category so that no resample lacks one (Efron 1979, stratified)."""
    generator, counts = np.random.default_rng(seed), np.zeros((n_resamples, len(category)))
    for number in np.unique(category):
        rows = np.flatnonzero(category == number)
        counts[:, rows] = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=n_resamples)
    return counts
