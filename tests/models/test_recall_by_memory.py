"""What attention cannot see, the memory recalls: associative recall beyond the reach of every window together."""

import pytest
import torch

from forgelib.data.recall import recall_batch
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.optim import MuGrokConfig, MuonGrokfast

KEYS, VALUES, FILLER = 16, 8, 16
LENGTH, DISTANCE, STEPS, BATCH = 32, 24, 400, 64
CHANCE = 1 / VALUES


def batch_of(n: int, seed: int):
    return recall_batch(n, LENGTH, DISTANCE, KEYS, VALUES, seed, n_filler=FILLER)


def build(memory: bool, seed: int) -> CognateForCausalLM:
    torch.manual_seed(seed)
    return CognateForCausalLM(
        CognateConfig(
            vocab_size=2 + KEYS + VALUES + FILLER,
            d_model=48,
            n_layers=1,
            n_heads=1,
            d_ff=96,
            window=3,
            memory_layers=[0] if memory else [],
            memory_chunk=16,
            max_cycles=1,
            n_micro_steps=1,
            recursion_layers=1,
        )
    )


def train(memory: bool, seed: int) -> CognateForCausalLM:
    """400 steps of 64 fresh rows at the rate 0.01, warmed up over 20 and decayed to zero over the last 60."""
    model = build(memory, seed).train()
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate", muon_lr=0.01, adamw_lr=0.005))
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(STEPS):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, (step + 1) / 20, (STEPS - step) / 60)
        rows = batch_of(BATCH, seed=1_000_000 * (seed + 1) + step)
        model(input_ids=rows.input_ids, labels=rows.labels, logits_to_keep=1).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def recalled_share(model: CognateForCausalLM, n: int = 1000) -> float:
    rows = batch_of(n, seed=7)
    with torch.no_grad():
        logits = model(input_ids=rows.input_ids, logits_to_keep=2, use_cache=False).logits[:, 0]
    return float((logits.argmax(-1) == rows.input_ids[:, -1]).float().mean())


def reach_of(config: CognateConfig) -> int:
    """Tokens that information can travel without the memory's matrices: windows and convolutions of all blocks, and
    the window of the recursion for each of its layers."""
    block = (config.window - 1) + (config.conv_kernel - 1)
    return config.n_layers * block + config.recursion_layers * (config.window - 1)


def test_the_pair_lies_beyond_the_reach_of_everything_but_the_memory():
    model, rows = build(memory=True, seed=0).eval(), batch_of(4, seed=0)
    assert reach_of(model.config) == 7 < DISTANCE
    asked = LENGTH - 2 - DISTANCE
    assert (rows.input_ids[:, asked] == rows.input_ids[:, -2]).all()
    assert (rows.input_ids[:, asked + 1] == rows.input_ids[:, -1]).all()
    other = rows.input_ids.clone()
    other[:, : LENGTH - 2 - reach_of(model.config)] = 0  # the pair and all else out of reach
    for use_memory in (True, False):
        model.model.use_memory = use_memory
        with torch.no_grad():
            one, two = (model(input_ids=ids, logits_to_keep=2).logits[:, 0] for ids in (rows.input_ids, other))
        assert torch.equal(one, two) == (not use_memory)


@pytest.mark.slow
def test_the_trained_memory_recalls_and_nothing_else_does():
    model = train(memory=True, seed=0)
    with_memory = recalled_share(model)
    model.model.use_memory = False
    switched_off = recalled_share(model)
    never_had = recalled_share(train(memory=False, seed=0))
    assert with_memory >= 0.90, (with_memory, switched_off, never_had)
    assert switched_off <= CHANCE + 0.10, (with_memory, switched_off, never_had)
    assert never_had <= CHANCE + 0.10, (with_memory, switched_off, never_had)
