"""Grokfast-EMA (2405.20233, algorithm 2): amplify the slow part of the gradient.

h <- alpha h + (1 - alpha) g,     g' = g + lambda h,     h starts at the first gradient.
"""

import torch
from torch import Tensor


def amplify(gradients: list[Tensor], slow: list[Tensor], alpha: float, lam: float) -> list[Tensor]:
    """Update the slow parts in place and return the amplified gradients as new tensors."""
    torch._foreach_lerp_(slow, gradients, 1 - alpha)
    return list(torch._foreach_add(gradients, slow, alpha=lam))
