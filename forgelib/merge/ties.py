"""TIES: trim the task vectors, elect signs, average those that agree (Yadav et al. 2023, algorithm 1).

    trim    tau_i keeps the elements whose magnitude is among the top k of the whole flattened vector
    elect   gamma = sign(sum_i tau_i) by element: the sign with the greater mass
    merge   child = base + scale mean over { i : sign(tau_i) = gamma, tau_i != 0 } of tau_i

Where positive and negative mass are equal, as far as float32 weights can tell, no sign is elected and the element stays
the base's (mergekit elects plus). The task vectors of two models from their own mean are opposite, and what their sum
differs from zero by is the rounding of the mean. Elements of the very magnitude of the k-th all stay.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

#: Half a unit in the last place of a float32 weight, twice: what a difference of two may be off by, as a share of them.
ROUNDING = torch.finfo(torch.float32).eps


def kth_magnitude(task_vector: Iterable[tuple[Tensor, Tensor]], size: int, top_k: float) -> float:
    """The smallest magnitude that stays: the round(top_k size)-th largest |a - base|, at least one.

    task_vector: pairs (a, base) of tensors, read one after the other, `size` elements in all. Exact; one vector of
    `size` float32 numbers (float64 if the first tensor is) is in memory.
    """
    magnitudes, filled = torch.empty(0), 0
    for a, base in task_vector:
        if not filled:
            magnitudes = torch.empty(size, dtype=torch.float64 if a.dtype == torch.float64 else torch.float32)
        part = magnitudes[filled : filled + a.numel()].view(a.shape)
        part.copy_(a).sub_(base).abs_()
        filled += a.numel()
    largest = max(1, round(top_k * size))
    if size == 0 or largest >= size:
        return 0.0
    values = magnitudes.numpy()
    values.partition(size - largest)
    return float(values[size - largest])


def add_what_agrees(
    out: Tensor, *pieces: Tensor, thresholds: list[float], scale: float, factors: list[float] | None = None
) -> None:
    """Write base + scale (mean of the agreeing trimmed task vectors) to `out`; pieces: models [n], then the base.

    thresholds: for each model the smallest magnitude that stays (`kth_magnitude`). factors: what each trimmed task
    vector is multiplied with before the election; None as published, nothing.
    """
    *models, base = pieces
    trimmed = [_trim(piece - base, threshold) for piece, threshold in zip(models, thresholds, strict=True)]
    for tau, factor in zip(trimmed, factors or [1.0] * len(trimmed), strict=True):
        if factor != 1:
            tau.mul_(factor)
    elected = sum(trimmed[1:], start=trimmed[0].clone())
    noise = base.abs().mul_(len(trimmed))
    for tau in trimmed:
        noise.add_(tau.abs())
    elected = elected.sign().mul_(elected.abs() > noise.mul_(ROUNDING))
    out.zero_()
    agreeing = torch.zeros_like(out)
    for tau in trimmed:
        agrees = (tau.sign() == elected).to(out.dtype)
        out.addcmul_(tau, agrees)
        agreeing.add_(agrees)
    out.div_(agreeing.clamp_(min=1)).mul_(scale).add_(base)


def _trim(tau: Tensor, threshold: float) -> Tensor:
    """tau, zero where the magnitude is below the threshold."""
    return tau.mul_((tau.abs() >= threshold).to(tau.dtype))
