"""How coherent a thought is: 0.4 semantic + 0.3 syntactic + 0.3 predictive, each between 0 and 1.

    semantic     cosine of the mean states of thought and context, from [-1, 1] to [0, 1]
    syntactic    the share of its marks (begin, end, tags) that are in order
    predictive   the share of the other thoughts about the same problem whose answer is the same: theater.agreement

Predictive coherence is agreement because that is what goes with being right: on small reasoning models it correlates
with correctness at 0.6 to 0.7 without an answer key, where the confidence of the answer does so at 0 and the drop in
entropy at -0.1: a wrong thought is copied just as surely.

Shape legend: T tokens of a context, L of a thought, D width, K thoughts; ... any leading dimensions.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from forgelib.data import Vocabulary

SEMANTIC, SYNTACTIC, PREDICTIVE = 0.4, 0.3, 0.3


def semantic_coherence(thought: Tensor, thought_mask: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
    """(1 + cosine) / 2, [...], of the mean states of thought [..., L, D] and context [..., T, D].

    The masks [..., L] and [..., T] are True at real tokens; without any of them a mean is zero, and the score 0.5.
    """
    means = []
    for states, mask in ((thought, thought_mask), (context, context_mask)):
        weights = mask.to(states.dtype)[..., None]
        means.append((states * weights).sum(-2) / weights.sum(-2).clamp_min(1))
    return (1 + torch.cosine_similarity(*means, dim=-1)) / 2


def syntactic_coherence(text: str, words: Vocabulary) -> float:
    """1 for a thought in which `words.read` finds no problem; each problem takes one of its marks away; 0 without one.

    Args: text: a decoded thought with its begin and end, special tokens shown.
    """
    thought = words.read(text)
    n_marks = sum(thought.counts.values())
    if thought.inside is None or not n_marks:
        return 0.0
    return max(0.0, 1 - len(thought.problems) / n_marks)


@dataclass(frozen=True)
class Coherence:
    """The three parts, arrays of one shape, each from 0 to 1, and what they make together.

    Raises ValueError for a value outside that range, nan included.
    """

    semantic: np.ndarray
    syntactic: np.ndarray
    predictive: np.ndarray

    def __post_init__(self):
        for name in ("semantic", "syntactic", "predictive"):
            values = np.asarray(getattr(self, name), dtype=float)
            if not ((values >= -1e-6) & (values <= 1 + 1e-6)).all():
                raise ValueError(
                    f"{name} coherence must lie between 0 and 1, not between {values.min()} and {values.max()}"
                )

    @property
    def composite(self) -> np.ndarray:
        parts = np.asarray(self.semantic), np.asarray(self.syntactic), np.asarray(self.predictive)
        return sum(weight * part for weight, part in zip((SEMANTIC, SYNTACTIC, PREDICTIVE), parts, strict=True))
