"""Grokfast-EMA (2405.20233, algorithm 2): amplify the slow part of the gradient.

    h <- a h + (1 - a) g,     g' = g + lambda h,     h starts at the first gradient

A gradient that always points the same way becomes (1 + lambda) g; one that flips its sign at every step keeps almost
its size. A smaller lambda amplifies the slow part less; it does not "filter more".
"""

import torch
from torch import Tensor


def amplify(gradients: list[Tensor], slow: list[Tensor], alpha: float, lam: float) -> list[Tensor]:
    """Move the slow parts h, in place, towards the gradients; return the amplified gradients g' as new tensors.

    Args: gradients, slow: tensors pairwise of one shape and type; alpha: decay a in [0, 1); lam: lambda, at least 0.
    """
    torch._foreach_lerp_(slow, gradients, 1 - alpha)
    return list(torch._foreach_add(gradients, slow, alpha=lam))
