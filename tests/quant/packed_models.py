"""Small models of three families, with random weights large enough to matter."""

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from forgelib.models import CognateConfig, CognateForCausalLM

VOCABULARY = 50


def build(family: str) -> nn.Module:
    """A model of the family in evaluation mode: "llama" (head tied), "llama-untied", "gpt2" or "cognate"."""
    torch.manual_seed(0)
    if family.startswith("llama"):
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=family == "llama",
            initializer_range=0.2,
        )
        return LlamaForCausalLM(config).eval()
    if family == "gpt2":
        sizes = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
        config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, initializer_range=0.2)
        return GPT2LMHeadModel(config).eval()
    sizes = {"vocab_size": VOCABULARY, "d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 96, "window": 8}
    return CognateForCausalLM(CognateConfig(**sizes, memory_chunk=4, initializer_range=0.2)).eval()


def tokens(batch: int = 2, length: int = 12) -> torch.Tensor:
    """Token ids [B, T]."""
    return torch.randint(0, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(model: nn.Module, input_ids: torch.Tensor | None = None) -> torch.Tensor:
    """[B, T, V] of the model in evaluation mode."""
    return model.eval()(input_ids=tokens() if input_ids is None else input_ids).logits
