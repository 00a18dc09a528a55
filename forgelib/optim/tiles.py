"""Work in tiles that stay in the cache: all element-wise passes over one tile, then the next.

On a CPU the optimizer is bound by memory: five passes over a 51 MB embedding cost the traffic of five. On a GPU
launching kernels is what costs, so there everything is one tile.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

#: Bytes of one operand in a tile. On the 25M model 0.5 to 2 MB are equally good; with 8 MB a step takes 30% longer.
TILE_BYTES = 2**20
#: Matrices in a batched product, at least. With 2 or 8 of them a step takes 8 or 6% longer.
STACKED = 4


def tiles(tensors: list[Tensor]) -> Iterator[list[int]]:
    """Indices of consecutive tensors that make up one tile each; a tensor larger than a tile is alone in its own."""
    if tensors and tensors[0].is_cuda:
        yield list(range(len(tensors)))
        return
    members: list[int] = []
    size = 0
    for i, tensor in enumerate(tensors):
        if members and size + tensor.nbytes > TILE_BYTES:
            yield members
            members, size = [], 0
        members.append(i)
        size += tensor.nbytes
    if members:
        yield members


def batches(matrices: list[Tensor]) -> Iterator[list[Tensor]]:
    """Matrices of one shape in batches for batched products: a tile, or STACKED of them where that is more."""
    first = matrices[0]
    size = len(matrices) if first.is_cuda else max(STACKED, TILE_BYTES // first.nbytes)
    for start in range(0, len(matrices), size):
        yield matrices[start : start + size]


def row_blocks(operands: list[tuple[Tensor, ...]]) -> Iterator[list[tuple[Tensor, ...]]]:
    """The operands of a tile's tensors, as they are; those of a lone tensor larger than a tile cut into row blocks.

    Args: operands: for each tensor of the tile the tensors of its shape that are worked on together.
    """
    first = operands[0][0]
    if len(operands) > 1 or first.is_cuda or first.nbytes <= TILE_BYTES:
        yield operands
        return
    rows = max(1, TILE_BYTES * first.shape[0] // first.nbytes)
    for block in zip(*(torch.split(operand, rows) for operand in operands[0]), strict=True):
        yield [block]
