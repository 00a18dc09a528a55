"""The orthogonal factor of a matrix, nearly: Newton-Schulz steps (Muon, Jordan et al. 2024), four of them, batched.

    X_0 = G / |G|_4,    X <- P X,   P = a I + b A + c A^2,   A = X X^T,   |G|_4 = |G G^T|_F^(1/2) = (sum s^4)^(1/4)

Muon takes five quintic steps of one polynomial from the Frobenius norm on. Here each step has the polynomial that is
best for it (Polar Express, Amsel et al. 2025, theorem 3.1), and the Schatten-4 norm, for which A is there anyway,
starts the singular values nearer to one (a Gaussian matrix of 256 x 256 by a factor of 3.4), so that three quintic and
a cubic do: for G = U S V^T the result is U S' V^T, where singular values from 0.0035 |G|_4 on end in BAND. Smaller ones
grow by up to 200; zero stays zero. Matrices of one shape go through together as a stack [N, rows, columns].
"""

from functools import cache

import torch
from torch import Tensor

#: (a, b, c) of each step: the best approximation of 1 by an odd polynomial on [0.0035, 1], then on what the step
#: before leaves of it. Each interval ends 5, 2, 2 and 1% above: there they fall steeply, and rounding may lift a value.
POLYNOMIALS = (
    (7.970853, -21.345030, 14.348124),
    (3.947779, -2.828276, 0.515241),
    (3.402889, -2.456602, 0.475831),
    (1.865892, -0.540111, 0.0),
)
EPSILON = 1e-7
#: Where singular values end, rounding of bfloat16 included; 0.66 to 1.34 in float32.
BAND = (0.60, 1.40)
#: Steps between two looks at X itself. Square matrices: every step.
EVERY_STEP = (1, 1, 1, 1)
#: From GRAM_RATIO of the long to the short side on, the last two steps are taken on the small Gram matrix alone.
GRAM_RATIO, ON_THE_GRAM_MATRIX = 2.0, (1, 1, 2)


def _without_scalars() -> tuple[float, list[tuple[float | None, float]]]:
    """How to take the steps without a pass over a whole matrix for a, b or c: (start, [(shift, rest) of each step]).

    For X times s, with s' the factor after the step and r = s' / s, completing the square gives
    r P = (s^2 A + shift I)^2 + rest I, if s^5 = s' c; and -r P = s^2 A + rest I for a cubic, if s^3 = s' |b|. The last
    factor is 1; the minus of a cubic is in the first.
    """
    factor, sign, steps = 1.0, 1.0, []
    for a, b, c in reversed(POLYNOMIALS):
        after, factor = factor, (factor * c) ** (1 / 5) if c else (factor * -b) ** (1 / 3)
        ratio = after / factor
        shift = ratio * b / (2 * factor**2) if c else None
        steps.append((shift, ratio * a - shift**2) if c else (None, -ratio * a))
        sign = sign if c else -sign
    return sign * factor, steps[::-1]


START, STEPS = _without_scalars()


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
    """The steps on x [N, rows, columns], in segments of so many; tall matrices use A = X^T X.

    The P of consecutive steps commute, so within a segment they are gathered in Q and A moves on as P A P: X is
    touched once to form A and once for Q X. Longer segments are cheaper and wrong in bfloat16: Q lifts a small
    singular value and lowers a dominant one, so its rounding spills from the one into the other. With the first two
    steps gathered one leading value over many small ones has ended above 1,000. Before the last two A is made anew.
    """
    tall = x.shape[-2] > x.shape[-1]
    steps = iter(STEPS)
    for number, count in enumerate(segments):
        gram, product = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT), None
        if number == 0:
            scale = START / _schatten_4(gram)
            x, gram = x * scale, gram.mul_(scale**2)
        for left in reversed(range(count)):
            shift, rest = next(steps)
            factor = gram.clone() if left else gram
            if shift is not None:
                shifted = _add_to_diagonal(factor, shift)
                factor = torch.bmm(shifted, shifted)
            factor = _add_to_diagonal(factor, rest)
            product = factor if product is None else torch.bmm(factor, product)
            if left:
                gram = torch.bmm(torch.bmm(factor, gram), factor)
        x = torch.bmm(x, product) if tall else torch.bmm(product, x)
    return x


def _schatten_4(gram: Tensor) -> Tensor:
    """[N, 1, 1], at least EPSILON. Summed in float64: squares of squares leave the range of float32."""
    norm = torch.linalg.matrix_norm(gram, keepdim=True, dtype=torch.float64)
    return norm.sqrt().clamp_min(EPSILON).to(gram.dtype)


def _add_to_diagonal(matrices: Tensor, value: float) -> Tensor:
    matrices.diagonal(dim1=-2, dim2=-1).add_(value)
    return matrices
