"""What a Muon step does number by number: from the gradients into the stack that is made orthogonal, and from there
into the weights.

    h <- a h + (1 - a) g,   g' = g + lambda h             Grokfast-EMA (2405.20233, algorithm 2)
    b <- m b + (1 - m) g',  u = (1 - m) g' + m b          Nesterov momentum, as torch.optim.Muon has it
    W <- keep W + rate O(u)

A CPU is bound by memory here. With AVX-512 BF16, muon_pass.cpp reads and writes each matrix once, with torch's bits;
elsewhere torch goes over tiles that stay in the cache.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from forgelib.core.cpp import CannotBuild, built

from .gram import FLAGS
from .grokfast import amplify
from .tiles import tiles

SOURCE = Path(__file__).with_name("muon_pass.cpp")
#: Numbers that muon_pass.cpp takes at a time: matrices have a multiple of it.
LANES = 16
#: Numbers from which on a second thread pays: two of the blocks that muon_pass.cpp shares out.
WORTH_THREADS = 2**15


def collect(
    stack: Tensor,
    gradients: list[Tensor],
    slow: list[Tensor],
    momenta: list[Tensor],
    alpha: float,
    lam: float,
    beta: float,
) -> None:
    """Write the updates u into `stack` [N, rows, columns]; `slow` (h) and `momenta` (b) move, gradients stay.

    Args: gradients, slow, momenta: N matrices [rows, columns] each. Without a filter (lambda 0) `slow` is not used.
        alpha, lam, beta: a, lambda and m.
    """
    filtered = lam != 0
    library = native()[0] if _fits(stack, gradients, momenta, *([slow] if filtered else [])) else None
    if library is not None:
        memory = (_addresses(gradients), _addresses(slow) if filtered else None, _addresses(momenta), stack.data_ptr())
        library.muon_collect(*_extent(stack), *memory, 1 - alpha, lam, 1 - beta, beta, _threads(stack))
        return
    updates = stack.unbind()
    for tile in tiles(gradients):
        chosen = [gradients[i] for i in tile]
        if filtered:
            chosen = amplify(chosen, [slow[i] for i in tile], alpha, lam)
        moved = [momenta[i] for i in tile]
        torch._foreach_lerp_(moved, chosen, 1 - beta)
        torch._foreach_copy_([updates[i] for i in tile], torch._foreach_lerp(chosen, moved, beta))


def apply(weights: list[Tensor], directions: Tensor, keep: float, rate: float) -> None:
    """weights [rows, columns] <- keep * weights + rate * directions [N, rows, columns], in place."""
    library = native()[0] if _fits(directions, weights) else None
    if library is not None:
        memory = (_addresses(weights), directions.data_ptr())
        library.muon_apply(*_extent(directions), *memory, keep, rate, _threads(directions))
        return
    steps = directions.to(weights[0].dtype).unbind()
    for tile in tiles(weights):
        chosen = [weights[i] for i in tile]
        if keep != 1:
            torch._foreach_mul_(chosen, keep)
        torch._foreach_add_(chosen, [steps[i] for i in tile], alpha=rate)


def _fits(stack: Tensor, *operands: Sequence[Tensor]) -> bool:
    """A stack of bfloat16 over matrices of float32, all of them whole and in order in the processor's memory."""
    return (
        stack.dtype == torch.bfloat16
        and stack.is_cpu
        and stack.is_contiguous()
        and stack[0].numel() % LANES == 0
        and all(t.dtype == torch.float32 and t.is_cpu and t.is_contiguous() for each in operands for t in each)
    )


def _extent(stack: Tensor) -> tuple[int, int]:
    return len(stack), stack[0].numel()


def _threads(stack: Tensor) -> int:
    return torch.get_num_threads() if stack.numel() >= WORTH_THREADS else 1


def _addresses(tensors: list[Tensor]) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))


@cache
def native() -> tuple[ctypes.CDLL | None, str]:
    """The library of muon_pass.cpp; or None, and why."""
    if not torch.cpu._is_avx512_bf16_supported():
        return None, "the processor has no AVX-512 BF16"
    try:
        library = ctypes.CDLL(str(built(SOURCE, flags=FLAGS)))
    except CannotBuild as error:
        return None, str(error)
    address, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_float
    library.muon_collect.argtypes = [size, size, *[address] * 4, *[number] * 4, size]
    library.muon_apply.argtypes = [size, size, address, address, number, number, size]
    library.muon_collect.restype = library.muon_apply.restype = None
    return library, ""
