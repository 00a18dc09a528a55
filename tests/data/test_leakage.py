"""A planted leak is found; what only looks like one is not."""

import random

import torch

from forgelib.data.leakage import leaked, leaked_prompts
from forgelib.data.packing import pack


def test_a_planted_leak_is_counted_once():
    pools = [pack([[5, 6, 7, 8], [9, 10]], 4, 0), pack([[5, 6, 7, 8], [11]], 5, 0)]
    assert leaked_prompts(pools, [[5, 6], [9, 10], [12]], eos_id=0) == 2


def test_the_middle_of_a_document_is_no_leak():
    assert leaked_prompts([pack([[5, 6, 7, 8]], 4, 0)], [[6, 7]], eos_id=0) == 0


def test_bytes_across_two_tokens_are_no_leak():
    pool = torch.tensor([[0, 1 << 8, 0, 5]], dtype=torch.int32)
    assert leaked_prompts([pool], [[1]], eos_id=0) == 0


def test_each_prompt_is_told_as_if_it_stood_alone():
    """Few tokens, so that prompts of any length begin documents, stand inside them or end with the pool."""
    dice = random.Random(0)
    documents = [[dice.randint(1, 2) for _ in range(dice.randint(1, 20))] for _ in range(60)]
    pools = [pack(documents[:30], 16, 0), pack(documents[30:], 24, 0)]
    prompts = [[dice.randint(1, 2) for _ in range(dice.randint(1, 14))] for _ in range(300)]
    text = ["0" + "".join(map(str, pool.flatten().tolist())) for pool in pools]
    by_hand = [any("0" + "".join(map(str, prompt)) in one for one in text) for prompt in prompts]
    assert leaked(pools, prompts, eos_id=0) == by_hand and 20 < sum(by_hand) < 280
