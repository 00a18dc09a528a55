"""X X^T of each matrix of a stack: two thirds of Newton-Schulz's products are such, and half of each is the mirror of
the other half.

gram.cpp computes one half where that pays: bfloat16 on a processor that multiplies it in vectors (AVX-512 BF16) and has
no matrix units, which are faster with the whole. torch.bmm, which does the rest, has the same bits up to 768 columns.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from forgelib.core.cpp import CannotBuild, built

SOURCE = Path(__file__).with_name("gram.cpp")
FLAGS = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16", "-mprefer-vector-width=512")
#: Rows and columns of what gram.cpp takes are multiples of this; with this many rows alone there is no other half.
MULTIPLE = 32
#: Multiply-adds of a product from which on a second thread pays: it makes 96 x 96 x 96 of them 8% faster, and
#: 64 x 64 x 128 a tenth slower.
WORTH_THREADS = 750_000


def gram_matrix(x: Tensor, diagonal: float = 0.0) -> Tensor:
    """X X^T + diagonal I, [N, rows, rows], for x [N, rows, columns]; exactly symmetric where gram.cpp made it."""
    transposed = not x.is_contiguous() and x.mT.is_contiguous()
    function = library()[0] if _fits(x) and (transposed or x.is_contiguous()) else None
    if function is None:
        return add_to_diagonal(torch.bmm(x, x.mT), diagonal)
    n, rows, columns = x.shape
    y = torch.empty(n, rows, rows, dtype=x.dtype)
    threads = torch.get_num_threads() if rows * rows * columns >= WORTH_THREADS else 1
    function(x.data_ptr(), n, rows, columns, transposed, diagonal, y.data_ptr(), threads)
    return y


def add_to_diagonal(matrices: Tensor, value: float) -> Tensor:
    """The matrices [N, rows, rows] themselves, changed."""
    if value:
        matrices.diagonal(dim1=-2, dim2=-1).add_(value)
    return matrices


def _fits(x: Tensor) -> bool:
    rows, columns = x.shape[-2:]
    return (
        x.dtype == torch.bfloat16
        and x.is_cpu
        and rows >= 2 * MULTIPLE
        and rows % MULTIPLE == columns % MULTIPLE == 0
        and not (torch.is_grad_enabled() and x.requires_grad)
    )


@cache
def library() -> tuple[object | None, str]:
    """gram(x, n, rows, columns, transposed, diagonal, y, threads) of gram.cpp, through ctypes; or None, and why."""
    if not torch.cpu._is_avx512_bf16_supported():
        return None, "the processor has no AVX-512 BF16"
    if torch.cpu._is_amx_tile_supported():
        return None, "the processor has matrix units, which are faster"
    try:
        function = ctypes.CDLL(str(built(SOURCE, flags=FLAGS))).gram
    except CannotBuild as error:
        return None, str(error)
    address, size = ctypes.c_void_p, ctypes.c_size_t
    function.argtypes = [address, size, size, size, ctypes.c_bool, ctypes.c_float, address, size]
    function.restype = None
    return function, ""
