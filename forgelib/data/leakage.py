"""Was a held-out prompt trained on? Looked up in the packed rows themselves, not in the lists they were made from."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

#: Token ids that a document and a prompt are compared by first.
HEAD = 8

if TYPE_CHECKING:
    import torch


def leaked_prompts(pools: Iterable["torch.Tensor"], prompts: Iterable[Sequence[int]], eos_id: int) -> int:
    """How many of the `prompts` (token ids) begin a document in any of the packed pools [N, T].

    A document begins after an end-of-text mark or at the start of a pool.
    """
    return sum(leaked(pools, prompts, eos_id))


def leaked(pools: Iterable["torch.Tensor"], prompts: Iterable[Sequence[int]], eos_id: int) -> list[bool]:
    """Whether each of the prompts begins a document, in one pass over the pools, however many prompts there are."""
    wanted = [np.asarray(prompt, dtype=np.int32) for prompt in prompts]
    by_head: dict[int, dict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, prompt in enumerate(wanted):
        head = prompt[:HEAD]
        by_head[len(head)][head.tobytes()].append(i)
    found = [False] * len(wanted)
    for pool in pools:
        stream = np.concatenate([[eos_id], pool.numpy().ravel()]).astype(np.int32)
        for start in np.flatnonzero(stream == eos_id) + 1:
            for length, prompts_of in by_head.items():
                for i in prompts_of.get(stream[start : start + length].tobytes(), ()):
                    found[i] = found[i] or np.array_equal(stream[start : start + len(wanted[i])], wanted[i])
    return found
