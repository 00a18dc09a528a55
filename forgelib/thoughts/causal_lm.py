"""Any causal language model as this room sees it: its public forward pass, and what that can and cannot be asked.

Nothing of the model is changed. What its output head is given is seen through a hook that lives for one call, so the
states are the ones that its logits come from, whatever norms the architecture has before its head.

Shape legend: B rows, T tokens, S keys in reach, D width, V vocabulary.
"""

import inspect
from typing import NamedTuple

import torch
from torch import Tensor, nn

#: Attention functions that build their masks themselves and so cannot be given one.
WITHOUT_MASKS = ("flash", "flex")


class Read(NamedTuple):
    """logits [B, kept, V]; states [B, kept, D] that the head got; cache; attentions, each [B, H, T, S], or None."""

    logits: Tensor
    states: Tensor
    cache: object | None
    attentions: tuple[Tensor, ...] | None


class CausalLM:
    """A Hugging Face causal LM (or one wrapped by peft), read through `forward` alone.

    Raises ValueError for a model without an output head.
    """

    def __init__(self, model: nn.Module):
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.model, self.config = model, plain.config
        self.accepted = inspect.signature(plain.forward).parameters
        self.head = plain.get_output_embeddings()
        if self.head is None:
            raise ValueError(f"{type(plain).__name__} has no output head: thoughts need a causal language model")

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def vocab_size(self) -> int:
        return self.head.weight.shape[0]

    @property
    def context_length(self) -> int | None:
        """How many tokens a row may have; None where the model names no limit."""
        return getattr(self.config, "max_position_embeddings", None)

    def takes_masks(self, longest: int) -> bool:
        """Whether a 4-D mask and explicit positions say everything that `longest` tokens of a row may look at.

        Not so for a recurrent state (`_is_stateful`), for positions that the model counts itself, for attention
        functions that take no mask, and for layers whose window is shorter than the text.
        """
        attention = str(getattr(self.config, "_attn_implementation", None))
        if getattr(self.model, "_is_stateful", False) or getattr(self.config, "alibi", False):
            return False
        if "position_ids" not in self.accepted or any(name in attention for name in WITHOUT_MASKS):
            return False
        window = getattr(self.config, "sliding_window", None)
        kinds = set(getattr(self.config, "layer_types", None) or ({"sliding_attention"} if window else ()))
        return kinds <= {"full_attention"} or (kinds <= {"full_attention", "sliding_attention"} and window >= longest)

    def position_ids(self, valid: Tensor) -> Tensor:
        """Positions [B, T] that count the real tokens of valid [B, T] only."""
        return (valid.cumsum(1) - 1).clamp_min(0)

    def mask(self, seen: Tensor) -> Tensor:
        """`seen` [..., T, S] as this model wants a mask: true or false, or added to the attention logits."""
        if "sdpa" in str(self.config._attn_implementation):
            return seen
        dtype = self.head.weight.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    def read(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        *,
        keep: Tensor | None = None,
        cache: object | None = None,
        use_cache: bool = False,
        attentions: bool = False,
    ) -> Read:
        """One forward pass over input_ids [B, T].

        attention_mask: [B, S], or [B, 1, T, S] from `mask`. keep: indices of the tokens whose logits are wanted, None
        means all. A model that halts halts, in training as at inference: what it says is what it would have sampled.
        """
        options = {"past_key_values": cache} if cache is not None else {}
        if "position_ids" in self.accepted:  # what a thought's own tokens do not reach, its padding need not either
            last = None if self.context_length is None else self.context_length - 1
            options["position_ids"] = position_ids.clamp(0, last)
        options |= {"output_attentions": True} if attentions else {}
        options |= {"halt": True} if "halt" in self.accepted else {}
        sliced = keep is not None and "logits_to_keep" in self.accepted
        options |= {"logits_to_keep": keep} if sliced else {}
        given: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
        try:
            output = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, **options)
        finally:
            hook.remove()
        logits, states = output.logits, given[-1]
        if keep is not None and not sliced:
            logits, states = logits[:, keep], states[:, keep]
        cache, seen = (getattr(output, name, None) for name in ("past_key_values", "attentions"))
        return Read(logits, states, cache, seen or None)
