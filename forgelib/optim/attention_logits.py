"""The largest attention logits of a foreign Hugging Face model, through transformers' public AttentionInterface.

The model computes its attention as with "sdpa"; in training the maxima are taken besides, for QK-Clip. Shape legend:
B batch, H query heads, G key heads, T queries, S keys, d width of a head.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

#: The name under which the attention function is registered with transformers.
NAME = "sdpa_with_max_logits"
#: At most so many logits are held at once (256 MB in float32); longer sequences are taken in blocks of queries.
LOGITS_AT_ONCE = 2**26


class Tracking(NamedTuple):
    """Names of the attention modules that QK-Clip can act on, and of those that it cannot."""

    tracked: list[str]
    left_out: list[str]


def track_attention_logits(model: nn.Module) -> Tracking:
    """Make `model` keep `max_logits` [H] on its attention modules in training, so that MuonGrokfast can clip them.

    Call it before MuonGrokfast is made. Each tracked module then has `num_heads` and `max_logits`: None until its next
    training forward pass and after each optimizer step, in between the largest over all passes. Left out are modules
    - that normalise queries and keys (q_norm, k_norm): the norm bounds their logits, and scaling W_q changes nothing,
    - whose projections are fused in another way than GPT-2's c_attn.
    Raises ValueError for a model without attention modules or that does not use the AttentionInterface.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options):
        if module.training and hasattr(module, "max_logits"):
            with torch.no_grad():
                causal = options.get("is_causal")
                causal = getattr(module, "is_causal", True) if causal is None else causal
                largest = largest_logits(query, key, mask, options.get("scaling"), causal)
            before = module.max_logits
            module.max_logits = largest if before is None else torch.maximum(before, largest)
        return sdpa(module, query, key, value, mask, **options)

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    model.set_attn_implementation(NAME)
    if model.config._attn_implementation != NAME:
        raise ValueError(
            f"{type(model).__name__} does not use transformers' AttentionInterface, so its attention logits cannot be "
            "seen: train it with qk_clip_threshold=None"
        )
    attention = {name: m for name, m in model.named_modules() if type(m).__name__.endswith("Attention")}
    if not attention:
        raise ValueError(f"{type(model).__name__} has no submodule whose class is named ...Attention: nothing to track")
    tracked = [name for name, module in attention.items() if _clippable(module)]
    for name in tracked:
        attention[name].max_logits = None
        if not hasattr(attention[name], "num_heads"):
            attention[name].num_heads = attention[name].config.num_attention_heads
    return Tracking(tracked, [name for name in attention if name not in tracked])


def _clippable(attention: nn.Module) -> bool:
    separate = hasattr(attention, "q_proj") and hasattr(attention, "k_proj")
    return (separate or hasattr(attention, "c_attn")) and not hasattr(attention, "q_norm")


def largest_logits(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, causal: bool) -> Tensor:
    """Per head the largest scaled q . k before the softmax, over the pairs that attention may see; [H].

    Args:
        query: [B, H, T, d]. key: [B, G, S, d]; H / G query heads share a key head.
        mask: [B or 1, 1 or H, T, S or more], True (or, where it is added to the logits, above half the smallest
            number) where seen; None with `causal`: query t sees keys 0 to t.
        scaling: factor of the logits; None means 1 / sqrt(d).
    A head that sees nothing gets -inf.
    """
    batch, heads, length, width = query.shape
    key = key.repeat_interleave(heads // key.shape[1], dim=1)
    scaling = width**-0.5 if scaling is None else scaling
    positions = torch.arange(key.shape[2], device=key.device)
    rows = max(1, LOGITS_AT_ONCE // (batch * heads * key.shape[2]))
    largest = query.new_full((heads,), float("-inf"), dtype=torch.float32)
    for start in range(0, length, rows):
        block = query[:, :, start : start + rows]
        logits = (block @ key.mT).float() * scaling
        if mask is not None:
            part = mask[:, :, start : start + rows, : key.shape[2]]
            seen = part if part.dtype == torch.bool else part > torch.finfo(part.dtype).min / 2
            logits = logits.masked_fill(~seen, float("-inf"))
        elif causal and length > 1:
            own = torch.arange(start, start + block.shape[2], device=key.device)
            logits = logits.masked_fill(positions > own[:, None], float("-inf"))
        largest = torch.maximum(largest, logits.amax(dim=(0, 2, 3)))
    return largest
