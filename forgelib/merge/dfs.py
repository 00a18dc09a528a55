"""DFS: every tensor is a mean of the models' with weights of inverse variance.

    w_i = (1 / v_i) / sum_j (1 / v_j),    v_i = variance of the tensor's elements in model i

The model whose tensor spreads least counts most. That is the rule as it was given; a small spread of weights is no
proof of small error, and for models of one trunk the variances, and with them the weights, are nearly equal.
"""

import math

import torch
from torch import Tensor


def inverse_variance_shares(tensors: list[Tensor]) -> list[float]:
    """The weight of each of the tensors, summing to one; equal ones where any variance is zero, as for a single number.

    Variances are those of all elements (divided by n), summed in float64.
    """
    variances = [float(_variance(tensor)) for tensor in tensors]
    inverse = [1 / v if v > 0 else math.inf for v in variances]
    total = sum(inverse)
    if not math.isfinite(total):
        return [1 / len(tensors)] * len(tensors)
    return [value / total for value in inverse]


def _variance(tensor: Tensor) -> Tensor:
    wide = tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
    return torch.var(wide, correction=0) if wide.numel() else torch.zeros(())
