"""Work in tiles that stay in the cache: all element-wise passes over one tile, then the next.

On a CPU the optimizer is bound by memory: five passes over a 51 MB embedding cost the traffic of five. On a GPU
launching kernels is what costs, so there everything is one tile.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

#: Bytes of one operand in a tile. Measured on the 25M model: 0.5 to 1 MB is best, 64 KB and 4 MB cost 1.5 to 2.5 times.
TILE_BYTES = 2**20


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
