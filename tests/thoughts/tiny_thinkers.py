"""Small random models of every family, texts for them, and thoughts made the slow way: one position at a time."""

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from forgelib.models import CognateConfig

VOCABULARY, CONTEXT = 37, 40
TOKENS = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, **TOKENS}
ROTARY = {"num_key_value_heads": 2, "max_position_embeddings": CONTEXT, **SMALL}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, **TOKENS}
COGNATE = {"d_model": 32, "d_ff": 48, "n_layers": 2, "n_heads": 2, "window": 5, "memory_chunk": 4, **TOKENS}
COGNATE["initializer_range"] = 0.2  # wider ones make its recursion amplify rounding beyond 1e-4
#: Families whose positions share the text through a mask, under both of its forms.
MASKED = {
    "llama": lambda: LlamaConfig(**ROTARY),
    "llama, eager": lambda: LlamaConfig(attn_implementation="eager", **ROTARY),
    "gpt2": lambda: GPT2Config(**GPT2),
    "gpt2, eager": lambda: GPT2Config(attn_implementation="eager", **GPT2),
    "qwen2": lambda: Qwen2Config(**ROTARY),
}
#: Families whose state is forked: a window that a mask from outside would override, and a recurrent memory.
FORKED = {
    "qwen2, window of 4": lambda: Qwen2Config(use_sliding_window=True, sliding_window=4, max_window_layers=1, **ROTARY),
    "cognate": lambda: CognateConfig(act_threshold=0.75, **COGNATE),
}
FAMILIES = {**MASKED, **FORKED}
#: Left, right and no padding.
MASK = torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [1] * 6 + [0] * 3])


def thinker(name: str, seed: int = 0):
    """A model of a family in evaluation mode, its halting spread over all depths where it halts."""
    torch.manual_seed(seed)
    config = FAMILIES[name]()
    implementation = {"attn_implementation": "eager"} if "eager" in name else {}
    model = AutoModelForCausalLM.from_config(config, **implementation).eval()
    assert "eager" not in name or model.config._attn_implementation == "eager"
    if name == "cognate":
        with torch.no_grad():
            model.model.halting.probe.weight.normal_(std=2.0)
            model.model.halting.probe.bias.zero_()
    return model


def three_texts(seed: int = 0) -> torch.Tensor:
    """Ids [3, 9], 0 at the padding of MASK."""
    return torch.randint(1, VOCABULARY, MASK.shape, generator=torch.Generator().manual_seed(seed)) * MASK


def prefix_of(ids, mask, row: int, column: int) -> torch.Tensor:
    """The real tokens of a text up to a column, alone: [1, tokens]."""
    real = mask[row, : column + 1].bool()
    return ids[row : row + 1, : column + 1][:, real]


@torch.no_grad()
def logits_alone(model, prefix: torch.Tensor, thought: torch.Tensor) -> torch.Tensor:
    """Logits [L, V] that each token of the thought is drawn from, by plain forward passes without a cache."""
    found = []
    for step in range(len(thought)):
        ids = torch.cat([prefix, thought[None, :step]], 1)
        found.append(model(input_ids=ids, use_cache=False).logits[0, -1])
    return torch.stack(found)


def real_places(mask) -> list[tuple[int, int]]:
    return [tuple(place) for place in mask.nonzero().tolist()]
