"""Numbers that tell a thought from theater: edit distance, total variation, agreement, correlation within strategies;
and the replaced thoughts that they are compared with.

Shape legend: P problems, K thoughts of each, C candidate answers, S strategies, R resamples.
"""

from collections.abc import Sequence

import numpy as np

Ids = tuple[int, ...]


def edit_distance(first: Sequence, second: Sequence) -> float:
    """Levenshtein distance over the longer length: 0 for equal sequences, 1 where nothing is shared; two empty ones: 0.

    (Levenshtein 1966; METHOD's "normalised edit distance".)
    """
    if not first or not second:
        return float(bool(first) or bool(second))
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1] / max(len(first), len(second))


def total_variation(first: np.ndarray, second: np.ndarray) -> float:
    """Half the absolute differences of two answer distributions, from log-probabilities [C] of the same candidates.

    What the candidates leave of the probability is one candidate more, so the number is at most the true distance over
    all answers: it never makes a thought look more used than it is.
    """
    p, q = np.exp(first), np.exp(second)
    rest = abs(max(0.0, 1 - p.sum()) - max(0.0, 1 - q.sum()))
    return float(min(1.0, 0.5 * (np.abs(p - q).sum() + rest)))


def agreement(answers: Sequence[Sequence[str]]) -> np.ndarray:
    """Coherence without an answer key: the share of the other K-1 thoughts' answers that are the same, [P, K].

    METHOD: "predictive coherence = agreement with the answers of the other thoughts" (as self-consistency, 2203.11171).
    An empty answer agrees with none.
    Raises ValueError for fewer than two thoughts a problem.
    """
    if any(len(row) < 2 for row in answers):
        raise ValueError("agreement needs at least two thoughts of every problem")
    return np.array([[(row.count(a) - 1) / (len(row) - 1) if a else 0.0 for a in row] for row in map(list, answers)])


def moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sums per problem from which a correlation is made, [P, 6]: count, x, y, xx, yy, xy over the K thoughts."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    parts = (np.ones_like(x), x, y, x * x, y * y, x * y)
    return np.stack([part.sum(-1) for part in parts], -1)


def correlation_within(sums: np.ndarray) -> np.ndarray:
    """Pearson's r [...] from summed moments [..., S, 6], each strategy about its own means.

    Mixing strategies of different difficulty makes thoughts that do nothing look correlated; deviations from the
    strategy's mean do not. 0 where one of the two does not vary: it then says nothing about the other.
    """
    n, x, y, xx, yy, xy = np.moveaxis(np.asarray(sums, float), -1, 0)
    n = np.maximum(n, 1)
    sxx, syy, sxy = (xx - x * x / n).sum(-1), (yy - y * y / n).sum(-1), (xy - x * y / n).sum(-1)
    varies = (sxx > 1e-9) & (syy > 1e-9)
    return np.where(varies, sxy / np.sqrt(np.where(varies, sxx * syy, 1.0)), 0.0)


def shuffled_tokens(thoughts: Sequence[Ids], seed: int) -> list[Ids]:
    """Each thought's tokens in another order; one of fewer than two different tokens has none and stays as it is."""
    generator, found = np.random.default_rng(seed), []
    for thought in thoughts:
        order = thought
        while order == thought and len(set(thought)) > 1:
            order = tuple(thought[i] for i in generator.permutation(len(thought)))
        found.append(order)
    return found


def donors(thoughts: Sequence[Ids], strategies: Sequence[str], seed: int) -> np.ndarray:
    """For each problem another one of the same strategy whose thought it is given, [P].

    The donor nearest in length that has another thought, ties at random: a thought of another length would tell the
    answer apart by its length alone. Where all thoughts of a strategy are equal, any other problem.
    Raises ValueError for a strategy with a single problem.
    """
    generator, found = np.random.default_rng(seed), np.empty(len(thoughts), dtype=int)
    lengths, names = np.array([len(thought) for thought in thoughts], dtype=float), np.array(strategies)
    number = {thought: i for i, thought in enumerate(dict.fromkeys(thoughts))}
    content = np.array([number[thought] for thought in thoughts])
    for name in dict.fromkeys(strategies):
        members = np.flatnonzero(names == name)
        if len(members) < 2:
            raise ValueError(f"strategy {name} has a single problem: its thought can be swapped with no other's")
        for i in members:
            cost = np.abs(lengths[members] - lengths[i]) + generator.random(len(members))
            cost[content[members] == content[i]] += 1e6
            cost[members == i] = np.inf
            found[i] = members[np.argmin(cost)]
    return found


def spread_over(strategies: Sequence[str], n: int, seed: int) -> np.ndarray:
    """`n` problems, in order, as evenly over the strategies as they allow; which of a strategy is random, [n]."""
    generator, names = np.random.default_rng(seed), np.array(strategies)
    drawn = [generator.permutation(np.flatnonzero(names == name)) for name in dict.fromkeys(strategies)]
    turns = [(turn, s, i) for s, members in enumerate(drawn) for turn, i in enumerate(members)]
    return np.sort(np.array([i for _, _, i in sorted(turns)[:n]], dtype=int))
