"""Linear: the weighted mean of the models (model soups, Wortsman et al. 2022).

    child = sum_i w_i a_i,    sum_i w_i = 1

Written as a chain of interpolations, m <- m + w_i / (w_1 + ... + w_i) (a_i - m), so that models that are equal give
that very model, to the last bit.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def shares(n: int, weights: Sequence[float] | None = None) -> list[float]:
    """The weights of n models, made to sum to one; None means equal. `Genes` refuses impossible ones."""
    if weights is None:
        return [1 / n] * n
    if len(weights) != n:
        raise ValueError(f"weights = {tuple(weights)}: needs one for each of the {n} models")
    total = sum(weights)
    return [weight / total for weight in weights]


def mean(out: Tensor, *pieces: Tensor, shares: Sequence[float]) -> None:
    """Write sum_i shares_i pieces_i to `out`, all of one shape; `shares` sum to one."""
    if len(pieces) == 1:
        out.copy_(pieces[0])
    so_far, current = shares[0], pieces[0]
    for piece, share in zip(pieces[1:], shares[1:], strict=True):
        so_far += share
        torch.lerp(current, piece, share / so_far if so_far else 0.0, out=out)
        current = out
