"""A tiny trunk and three siblings that moved away from it by noise, saved as model folders, and texts to measure on."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from forgelib.evaluate.texts import Texts, batch_texts
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.phases.workshop import Plan

VOCABULARY, N_LAYERS = 29, 2
#: The halting thresholds of the three Cognate parents: dials in which they differ.
THRESHOLDS = (0.05, 0.5, 0.95)


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": N_LAYERS}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **special, initializer_range=0.3))


def cognate(**overrides) -> CognateForCausalLM:
    """Its halting probabilities are spread wide, so that the threshold decides how often it recurses."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "d_model": 16, "n_layers": N_LAYERS, "n_heads": 2, "d_ff": 24, "window": 5}
    rest = {"memory_chunk": 4, "initializer_range": 0.3, "eos_token_id": 2, "pad_token_id": 0}
    model = CognateForCausalLM(CognateConfig(**{**sizes, **rest, **overrides}))
    with torch.no_grad():
        model.model.halting.probe.weight.normal_(std=2.0)
        model.model.halting.probe.bias.fill_(0.0)
    return model


def texts(n: int = 12, seed: int = 0, tokens_per_batch: int = 64) -> Texts:
    """Texts of 4 to 15 tokens in two categories; every second one has an answer of one token."""
    dice = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 16, (n,), generator=dice).tolist()
    drawn = [torch.randint(3, VOCABULARY, (length,), generator=dice).tolist() for length in lengths]
    encoded = [(ids[:-1], ids[-1:]) if i % 2 else (ids, []) for i, ids in enumerate(drawn)]
    categories = ["math" if i % 3 else "code" for i in range(n)]
    return batch_texts(encoded, categories, pad_token_id=0, tokens_per_batch=tokens_per_batch)


def save_family(folder: Path, build=llama, n_texts: int = 12) -> Plan:
    """The plan of three siblings, each the trunk plus noise of its own as if trained."""
    trunk = build()
    trunk.save_pretrained(folder / "trunk")
    for i, threshold in enumerate(THRESHOLDS):
        sibling, dice = build(), torch.Generator().manual_seed(100 + i)
        if hasattr(sibling.config, "dials"):
            sibling.set_dials({"act_threshold": threshold})
        with torch.no_grad():
            for parameter in sibling.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=dice)
        sibling.save_pretrained(folder / f"parent-{i}")
    return plan_of(folder, n_texts)


def plan_of(folder: Path, n_texts: int = 12) -> Plan:
    """The plan of a family that was saved there."""
    parents = tuple(str(folder / f"parent-{i}") for i in range(len(THRESHOLDS)))
    return Plan(parents, str(folder / "trunk"), texts(n_texts), race=texts(6, seed=1))
