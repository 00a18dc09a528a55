"""A small Llama and a language it can learn: the token after x is 7 x + 3 modulo 20."""

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY, LENGTH = 20, 12


def parent():
    """The model before conversion, with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **sizes)).eval()


def shown(epoch):
    """32 rows (input_ids, labels) of an epoch; the first two tokens carry no loss."""
    return rows(seed=epoch)


def rows(seed, n=32):
    dice = random.Random(seed)
    found = []
    for _ in range(n):
        ids = [dice.randrange(VOCABULARY)]
        while len(ids) < LENGTH:
            ids.append((7 * ids[-1] + 3) % VOCABULARY)
        found.append((ids, [-100, -100, *ids[2:]]))
    return found


def batches_of(seed):
    """input_ids and labels [32, T]."""
    return tuple(torch.tensor(part) for part in zip(*rows(seed), strict=True))
