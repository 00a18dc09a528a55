"""DARE: drop and rescale the task vectors, then add their weighted mean to the trunk (Yu et al. 2024, equation 3).

    child = base + scale sum_i w_i m_i * tau_i / (1 - p),    tau_i = a_i - base,    m_i ~ Bernoulli(1 - p) by element

The expectation over masks is task arithmetic, base + scale sum_i w_i tau_i, and p = 0 is that exactly. The output of a
linear layer errs by sqrt(p / (1 - p)) of the task vector's own: 3 times as much at p = 0.9.
"""

import numpy as np
import torch
from torch import Tensor

from forgelib.core.rng import stream

WORD = 2**32


class Masks:
    """Which elements of one tensor of one model stay: a stream of its own for (seed, model index, tensor name).

    So a mask depends neither on the order in which tensors are merged nor on the machine (numpy's SFC64).
    """

    def __init__(self, drop_rate: float, seed: int, index: int, name: str):
        #: An element stays when its word of 32 bits reaches this; numpy's words are read as signed.
        self.threshold = round(drop_rate * WORD) - WORD // 2
        self._words = np.random.SFC64(stream(seed, "dare", index, name))
        self._every = self.threshold == -WORD // 2

    def next(self, n: int, dtype: torch.dtype) -> Tensor | None:
        """One or zero for each of the tensor's next n elements, [n]; None where nothing is ever dropped."""
        if self._every:
            return None
        words = torch.from_numpy(self._words.random_raw((n + 1) // 2).view(np.int32)[:n])
        return (words >= self.threshold).to(dtype)


def add_what_stays(
    out: Tensor, *pieces: Tensor, shares: list[float], masks: list[Masks], drop_rate: float, scale: float
) -> None:
    """Write base + scale sum_i shares_i mask_i tau_i / (1 - p) to `out`; pieces: the models' [n], then the base's."""
    *models, base = pieces
    out.copy_(base)
    for piece, share, mask in zip(models, shares, masks, strict=True):
        tau, stays, factor = piece - base, mask.next(piece.numel(), piece.dtype), scale * share / (1 - drop_rate)
        if stays is None:
            out.add_(tau, alpha=factor)
        else:
            out.addcmul_(tau, stays, value=factor)
