"""A planted leak is found; what only looks like one is not."""

import torch

from forgelib.data.leakage import leaked_prompts
from forgelib.data.packing import pack


def test_a_planted_leak_is_counted_once():
    pools = [pack([[5, 6, 7, 8], [9, 10]], 4, 0), pack([[5, 6, 7, 8], [11]], 5, 0)]
    assert leaked_prompts(pools, [[5, 6], [9, 10], [12]], eos_id=0) == 2


def test_the_middle_of_a_document_is_no_leak():
    assert leaked_prompts([pack([[5, 6, 7, 8]], 4, 0)], [[6, 7]], eos_id=0) == 0


def test_bytes_across_two_tokens_are_no_leak():
    pool = torch.tensor([[0, 1 << 8, 0, 5]], dtype=torch.int32)
    assert leaked_prompts([pool], [[1]], eos_id=0) == 0
