"""Held-out texts and questions drawn in the proportions of a mix, the same ones for every model that is compared."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from forgelib.data import Example


def mixed_texts(pools: Mapping[str, torch.Tensor], mix: Mapping[str, float], n: int, seed: int) -> torch.Tensor:
    """About `n` packed held-out sequences, each category by its share of the mix: int64 [N, T].

    A category with fewer sequences than its share asks for gives all it has.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for category in sorted(set(pools) & set(mix)):
        pool = pools[category]
        rows.append(pool[torch.randperm(len(pool), generator=generator)[: max(1, round(n * mix[category]))]])
    return torch.cat(rows).long()


def mixed_questions(
    heldout: Mapping[str, Sequence[Example]], mix: Mapping[str, float], n: int, seed: int
) -> list[Example]:
    """About `n` held-out examples that have an answer, each category by its share of the mix."""
    asked = {category: [e for e in rows if e.answer] for category, rows in heldout.items()}
    asked = {category: rows for category, rows in asked.items() if rows and mix.get(category, 0) > 0}
    total = sum(mix[category] for category in asked)
    chosen = []
    for category in sorted(asked):
        rows = list(asked[category])
        random.Random(f"{seed}/{category}").shuffle(rows)
        chosen += rows[: max(1, round(n * mix[category] / total))]
    return chosen


def constant_guess(questions: Sequence[Example]) -> np.ndarray:
    """The control without a model: for each dataset the one answer that is right most often. Right or wrong, [n] bool.

    The answer is chosen on the questions themselves, so the control is as strong as a constant can be.
    """
    counts: dict[str, Counter] = {}
    for question in questions:
        counts.setdefault(question.dataset, Counter())[question.answer.strip()] += 1
    best = {dataset: counter.most_common(1)[0][0] for dataset, counter in counts.items()}
    return np.array([question.answer.strip() == best[question.dataset] for question in questions])


def by_category(questions: Sequence[Example], columns: Mapping[str, np.ndarray]) -> list[dict]:
    """One row per category: how many questions, and the share right of each column (name -> [n] bool)."""
    categories = np.array([question.category for question in questions])
    rows = []
    for category in sorted(set(categories.tolist())):
        chosen = categories == category
        shares = {name: round(float(right[chosen].mean()), 3) for name, right in columns.items()}
        rows.append({"category": category, "questions": int(chosen.sum()), **shares})
    return rows
