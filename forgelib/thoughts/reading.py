"""Given thoughts read again, with gradient: log-probabilities for REINFORCE, end states for the mixing head.

    log_probs = thought_log_probs(model, input_ids, attention_mask, thoughts)
    loss = -(advantages[..., None] * log_probs).sum(-1).mean()

Thoughts are read in groups, each under activation checkpointing: between forward and backward pass nothing of a group
is kept but its results, and only one group's logits exist at a time.

Shape legend: B texts, T tokens, P positions, K thoughts, L tokens of a thought, D width, V vocabulary; N texts and
G thoughts of each that are read at once.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .causal_lm import CausalLM
from .drawing import policy
from .forked_state import read_forked_state
from .shared_text import read_shared_text
from .thought import Thoughts, check_context, text_mask

#: Numbers of logits in memory at once (16 MiB in float32), and tokens, text and thoughts, that are read at once.
ELEMENTS, TOKENS = 2**22, 2**13


class Reading(NamedTuple):
    """log_probs [B, P, K, L] in nats, 0 where no token was drawn; end_states [B, P, K, D], 0 without a thought."""

    log_probs: Tensor
    end_states: Tensor


def thought_log_probs(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    thoughts: Thoughts,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """Log-probabilities [B, P, K, L] of the drawn tokens, with gradient; 0 elsewhere.

    As they stand, under the full distribution: `thoughts.log_probs` again. With the temperature and top_p they were
    sampled at: `thoughts.policy_log_probs` again, which is what the policy gradient of truncated sampling asks for.
    """
    return read_thoughts(model, input_ids, attention_mask, thoughts, temperature=temperature, top_p=top_p).log_probs


def read_thoughts(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    thoughts: Thoughts,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    elements: int = ELEMENTS,
) -> Reading:
    """Log-probabilities and end states (what the head is given after a thought's last token) of given thoughts.

    The model's mode is left as it is, so that in training QK-Clip sees its logits; a model that halts halts. One with
    dropout must be in evaluation mode (gradients flow there too), or these are not the sampled thoughts' values.
    `elements` bounds the numbers of one group's logits; it changes memory, never results.
    Raises ValueError where text and thought exceed the model's context.
    """
    lm, valid = CausalLM(model), text_mask(input_ids, attention_mask)
    (batch, n_positions, n_thoughts, length), flat = thoughts.tokens.shape, thoughts.tokens.flatten(1, 2)
    lengths = thoughts.lengths.amax(-1)
    longest = check_context(valid, thoughts.positions, lengths > 0, lengths, lm.context_length)
    columns = thoughts.positions.clamp_min(0).repeat_interleave(n_thoughts, 1)
    mask, drawn = thoughts.mask.flatten(1, 2), thoughts.drawn.flatten(1, 2)
    shared = lm.takes_masks(longest)
    reader = read_shared_text if shared else read_forked_state
    at_once = max(1, elements // (length * lm.vocab_size))
    groups = _shared(mask, valid, at_once) if shared else _forked(mask, valid, at_once)

    def read(texts: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        index = (texts[:, None], slots)
        tokens, own = flat[index], drawn[index]
        logits, states = reader(lm, input_ids[texts], valid[texts], columns[index], tokens)
        log_probs = policy(logits, temperature, top_p, tokens).gather(-1, tokens[..., None])[..., 0]
        last = (mask[index].sum(-1) - 1).clamp_min(0)[..., None, None].expand(-1, -1, 1, states.shape[-1])
        return log_probs.where(own, 0.0), states.gather(2, last)[:, :, 0] * mask[index].any(-1, keepdim=True)

    parts = []
    for texts, slots in groups:
        recomputed = torch.is_grad_enabled()
        result = checkpoint(read, texts, slots, use_reentrant=False) if recomputed else read(texts, slots)
        parts.append((texts, slots, *result))
    log_probs, end_states = _gathered(parts, len(flat), flat.shape[1])
    shape = (batch, n_positions, n_thoughts)
    return Reading(log_probs.view(*shape, length), end_states.view(*shape, -1))


def _shared(mask: Tensor, valid: Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Some texts [N] and some thoughts [N, G] of them: few enough that the mask does not outgrow the text."""
    batch, n_slots, length = mask.shape
    size = max(1, min(n_slots, at_once, -(-4 * valid.shape[1] // length)))
    n_texts = max(1, min(at_once // size, TOKENS // (valid.shape[1] + size * length)))
    for texts in torch.arange(batch, device=mask.device).split(n_texts):
        for slots in torch.arange(n_slots, device=mask.device).split(size):
            if bool(mask[texts[:, None], slots].any()):
                yield texts, slots.expand(len(texts), -1)


def _forked(mask: Tensor, valid: Tensor, at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of one text and one thought each, prefixes of like length together."""
    texts, slots = mask.any(-1).nonzero(as_tuple=True)
    rows = max(1, min(at_once, TOKENS // (valid.shape[1] + mask.shape[-1])))
    order = torch.argsort(slots, stable=True)
    for some_texts, some_slots in zip(texts[order].split(rows), slots[order].split(rows), strict=True):
        yield some_texts, some_slots[:, None]


def _gathered(parts: list[tuple], batch: int, n_slots: int) -> tuple[Tensor, Tensor]:
    """All groups' results as [B, P K, ...], zeros where nothing was read."""
    index = torch.cat([(texts[:, None] * n_slots + slots).flatten() for texts, slots, _, _ in parts])
    found = []
    for i in (2, 3):
        values = torch.cat([part[i].flatten(0, 1) for part in parts])
        found.append(values.new_zeros(batch * n_slots, values.shape[-1]).index_copy(0, index, values))
    return found[0], found[1]


def then_text(thoughts: Thoughts, input_ids: Tensor, attention_mask: Tensor | None, n_ahead: int) -> Thoughts:
    """Each thought followed by the n_ahead text tokens that come after its position, [B, P, K, L + n_ahead].

    Only those text tokens count as drawn, so `thought_log_probs` of the result is how well the thought foretells them,
    the likelihood reward of Quiet-STaR (2403.09629, eq. 4 and 5). Towards the end of a text there are fewer.
    """
    if n_ahead < 1:
        raise ValueError(f"n_ahead = {n_ahead}: at least one token must follow a thought")
    valid, n_thoughts = text_mask(input_ids, attention_mask), thoughts.tokens.shape[2]
    ahead = thoughts.positions[..., None] + 1 + torch.arange(n_ahead, device=input_ids.device)
    inside = ahead.clamp(0, input_ids.shape[1] - 1).flatten(1)
    real = (ahead < input_ids.shape[1]) & valid.gather(1, inside).view_as(ahead)
    text = input_ids.gather(1, inside).view_as(ahead)
    shape = (-1, -1, n_thoughts, -1)
    tokens = torch.cat([thoughts.tokens, text[:, :, None].expand(shape)], -1)
    follows = real[:, :, None] & thoughts.mask.any(-1, keepdim=True)
    mask = torch.cat([thoughts.mask, follows], -1)
    drawn = torch.cat([torch.zeros_like(thoughts.mask), follows], -1)
    order = torch.argsort((~mask).to(torch.uint8), dim=-1, stable=True)  # no gap between a thought and its text
    zeros = torch.zeros(tokens.shape, device=tokens.device)
    return replace(
        thoughts,
        tokens=tokens.gather(-1, order),
        mask=mask.gather(-1, order),
        drawn=drawn.gather(-1, order),
        log_probs=zeros,
        policy_log_probs=zeros,
    )
