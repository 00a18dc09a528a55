"""The nearest orthogonal matrix, nearly: five quintic Newton-Schulz steps (Muon, Jordan et al. 2024), batched.

    X <- a X + (b A + c A^2) X,  A = X X^T,  (a, b, c) = (3.4445, -4.7750, 2.0315),  X_0 = G / |G|_F

Singular values end in [0.68, 1.20]. All matrices of one shape go through together as one stack.
"""

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
#: Where the singular values of a well-conditioned matrix end.
BAND = (0.68, 1.20)
#: From this ratio of long to short side on, iterating on the small Gram matrix costs less than on X itself.
GRAM_RATIO = 1.5


def orthogonalize(stack: Tensor) -> Tensor:
    """The orthogonal factor of each matrix of `stack` [N, rows, columns]; a zero matrix stays zero."""
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.transpose(-1, -2) if tall else stack
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    wide_enough = x.shape[-1] >= GRAM_RATIO * x.shape[-2]
    x = _on_the_gram_matrix(x) if wide_enough else _on_the_matrix(x)
    return x.transpose(-1, -2) if tall else x


def _on_the_matrix(x: Tensor) -> Tensor:
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.transpose(-1, -2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _on_the_gram_matrix(x: Tensor) -> Tensor:
    """The same polynomials, gathered in Q with X_5 = Q X_0; P_k = a I + b G + c G^2 commutes with G = X X^T."""
    a, b, c = COEFFICIENTS
    gram = x @ x.transpose(-1, -2)
    identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device).expand_as(gram)
    product = identity
    for step in range(STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * identity
        product = factor if step == 0 else factor @ product
        if step < STEPS - 1:
            gram = factor @ gram @ factor
    return product @ x
