"""The orthogonal factor of a matrix, nearly: five quintic Newton-Schulz steps (Muon, Jordan et al. 2024), batched.

    X_0 = G / |G|_F,    X <- P X,   P = a I + b A + c A^2,   A = X X^T,   (a, b, c) = (3.4445, -4.7750, 2.0315)

For G = U S V^T the result is U S' V^T. Singular values above 0.005 |G|_F end in BAND; smaller ones grow by up to
a^5 = 485, and zero stays zero. Matrices of one shape go through together as a stack [N, rows, columns].
"""

from functools import cache

import torch
from torch import Tensor

from .gram import add_to_diagonal, gram_matrix

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPSILON = 1e-7
#: Completing the square, P = (sqrt(c) A + e I)^2 + (a - e^2) I with e = b / (2 sqrt(c)): for X scaled by c^(1/4) a step
#: is three products and two additions to a diagonal, with no pass over a whole matrix.
SCALE, SHIFT = COEFFICIENTS[2] ** 0.25, COEFFICIENTS[1] / (2 * COEFFICIENTS[2] ** 0.5)
CONSTANT = COEFFICIENTS[0] - SHIFT**2
#: Where singular values end, rounding of bfloat16 included; 0.68 to 1.21 in float32.
BAND = (0.66, 1.22)
#: Steps between two looks at X itself. Square matrices: every step.
EVERY_STEP = (1, 1, 1, 1, 1)
#: From GRAM_RATIO of the long to the short side on, two, two and one step are taken on the small Gram matrix alone.
GRAM_RATIO, ON_THE_GRAM_MATRIX = 2.0, (2, 2, 1)


@cache
def working_dtype(device_type: str) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively (GPUs, CPUs with AMX or AVX-512 BF16), else float32.

    Fixed for a machine, so that a run continues there bit for bit.
    """
    if device_type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    if device_type == "cpu" and torch.backends.mkldnn.is_available() and native:
        return torch.bfloat16
    return torch.float32


def product_dtype(matrix: Tensor) -> torch.dtype:
    """float64 for float64 matrices, else what pays on their device."""
    return torch.float64 if matrix.dtype == torch.float64 else working_dtype(matrix.device.type)


def orthogonalize(stack: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The orthogonal factor of each matrix in `stack` [N, rows, columns], in the stack's own type.

    The products are computed in `dtype`; None means `product_dtype` of the stack. A zero matrix
    stays zero. A matrix with NaN or infinity comes out as NaN, its neighbours in the stack unharmed.
    """
    x = stack.to(product_dtype(stack) if dtype is None else dtype)
    long, short = max(x.shape[-2:]), min(x.shape[-2:])
    return iterate(x, ON_THE_GRAM_MATRIX if long >= GRAM_RATIO * short else EVERY_STEP).to(stack.dtype)


def iterate(x: Tensor, segments: tuple[int, ...]) -> Tensor:
    """Newton-Schulz steps on x [N, rows, columns], in segments of so many; tall matrices use A = X^T X.

    The P of consecutive steps commute, so within a segment they are gathered in Q and A moves on as P A P: X is
    touched once to form A and once for Q X. Longer segments are cheaper and wrong in bfloat16: Q lifts a small
    singular value by 3.4 a step and lowers a dominant one, so its rounding spills from the one into the other. After
    three steps one leading value over many small ones has ended at 3,000. After two it stays in BAND; A is made anew.
    """
    tall = x.shape[-2] > x.shape[-1]
    x = x * (SCALE / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(EPSILON))
    for steps in segments:
        alone = steps == 1  # then nothing but A + e I is wanted of A
        gram, product = gram_matrix(x.mT if tall else x, SHIFT if alone else 0.0), None
        for step in range(steps):
            last = step == steps - 1
            shifted = gram if alone else add_to_diagonal(gram if last else gram.clone(), SHIFT)
            # A new Gram matrix is symmetric; one that has moved on is so but for its rounding.
            if step == 0:
                factor = gram_matrix(shifted, CONSTANT)
            else:
                factor = add_to_diagonal(torch.bmm(shifted, shifted), CONSTANT)
            product = factor if product is None else torch.bmm(factor, product)
            if not last:
                gram = torch.bmm(torch.bmm(factor, gram), factor)
        x = torch.bmm(x, product) if tall else torch.bmm(product, x)
    return x.div_(SCALE)
