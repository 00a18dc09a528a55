"""Tiny Cognate models whose every part matters: wide initial weights, gates and halting biases drawn at random."""

import pytest
import torch

from forgelib.models import CognateConfig, CognateForCausalLM

VOCABULARY = 37


def build(seed: int = 0, **overrides) -> CognateForCausalLM:
    sizes = {
        "vocab_size": VOCABULARY,
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 2,
        "d_ff": 24,
        "window": 5,
        "memory_chunk": 4,
        "initializer_range": 0.2,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
    torch.manual_seed(seed)
    model = CognateForCausalLM(CognateConfig(**{**sizes, **overrides})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gates.bias"):
                parameter.copy_(torch.randn_like(parameter))
        model.model.halting.probe.weight.normal_(std=2.0)
        model.model.halting.probe.bias.fill_(0.0)
    return model


@pytest.fixture
def tiny():
    """tiny(seed=0, **CognateConfig fields) -> model in evaluation mode."""
    return build


@pytest.fixture
def text():
    """text(batch, length, seed=0) -> token ids [B, T], never the padding id 0."""

    def draw(batch: int, length: int, seed: int = 0) -> torch.Tensor:
        return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))

    return draw
