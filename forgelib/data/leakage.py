"""Was a held-out prompt trained on? Looked up in the packed rows themselves, not in the lists they were made from."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def leaked_prompts(pools: Iterable["torch.Tensor"], prompts: Iterable[Sequence[int]], eos_id: int) -> int:
    """How many of the `prompts` (token ids) begin a document in any of the packed pools [N, T].

    A document begins after an end-of-text mark or at the start of a pool.
    """
    streams = [np.concatenate([[eos_id], pool.numpy().ravel()]).astype(np.int32).tobytes() for pool in pools]
    wanted = [np.asarray([eos_id, *prompt], dtype=np.int32).tobytes() for prompt in prompts]
    return sum(any(_aligned_find(stream, needle) for stream in streams) for needle in wanted)


def _aligned_find(stream: bytes, needle: bytes) -> bool:
    """Whether the needle stands in the stream at a multiple of four bytes."""
    at = stream.find(needle)
    while at >= 0 and at % 4:
        at = stream.find(needle, at + 1)
    return at >= 0
