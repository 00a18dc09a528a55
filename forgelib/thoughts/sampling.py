"""Thoughts at all positions of a text at once: one forward pass per thought token.

    thoughts = sample_thoughts(model, input_ids, attention_mask, ThoughtConfig(n_thoughts=4, length=12), generator=dice)

A model that takes a mask shares the text among all positions; a recurrent one has its state forked at each of them.
Either way a thought is what the model would have written after that prefix alone.

Shape legend: B texts, T tokens, P positions, K thoughts, L tokens of a thought, V vocabulary; N texts and G positions
of a group that is computed at once.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .causal_lm import CausalLM
from .drawing import draw, numbers_for, policy
from .forked_state import ForkedStates
from .shared_text import SharedTextForks
from .thought import ThoughtConfig, Thoughts, check_context, resolve_positions, text_mask

#: Numbers of logits or mask in memory at once (64 MiB in float32), and tokens of prefixes that are read at once.
ELEMENTS, PREFIX_TOKENS = 2**24, 2**14


@torch.no_grad()
def sample_thoughts(
    model: nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor | None,
    config: ThoughtConfig,
    *,
    positions: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Thoughts:
    """K thoughts of up to L tokens after each of the positions of input_ids [B, T], in evaluation mode.

    Args:
        attention_mask: [B, T], 0 at padding, on whichever side; None means there is none.
        positions: None (every token), [P] or [B, P] with -1 where a text has fewer; the thought follows that token.
        generator: where the randomness comes from; text i draws by its i-th stream, whatever its padding and company.
    Raises ValueError where text and thought exceed the model's context, and without a generator unless greedy.
    """
    lm, valid = CausalLM(model), text_mask(input_ids, attention_mask)
    positions, active = resolve_positions(positions, valid)
    lengths = torch.full_like(positions, config.length)
    longest = check_context(valid, positions, active, lengths, lm.context_length)
    numbers = None
    if config.temperature > 0:
        if generator is None:
            raise ValueError("thoughts are drawn at random (temperature above 0): give a torch.Generator")
        numbers = numbers_for(active, config.n_thoughts, config.length, generator)
    found = _empty(positions, config)
    was_training = model.training
    model.eval()
    try:
        groups = (
            _shared(lm, valid, positions, config) if lm.takes_masks(longest) else _forked(lm, valid, active, config)
        )
        for kind, texts, places in groups:
            columns = positions[texts[:, None], places].clamp_min(0)
            forks = kind(lm, input_ids[texts], valid[texts], columns, config.n_thoughts)
            index = (texts[:, None], places)
            some = None if numbers is None else numbers[texts.cpu()[:, None], places.cpu()]
            for name, values in _think(forks, active[index], some, config).items():
                found[name][index] = values
    finally:
        model.train(was_training)
    return Thoughts(**found, positions=positions)


Group = tuple[type, Tensor, Tensor]


def _shared(lm: CausalLM, valid: Tensor, positions: Tensor, config: ThoughtConfig) -> Iterator[Group]:
    """Some texts [N], some positions [N, G] of them, small enough that mask and logits of a step fit."""
    (batch, length), n_positions, n_thoughts = valid.shape, positions.shape[1], config.n_thoughts
    size = n_positions
    while size > 1 and n_thoughts * size * max(lm.vocab_size, length + size * config.length) > ELEMENTS:
        size = -(-size // 2)
    each = max(n_thoughts * size * max(lm.vocab_size, length + size * config.length), size * lm.vocab_size)
    for texts in torch.arange(batch, device=valid.device).split(max(1, ELEMENTS // each)):
        for places in torch.arange(n_positions, device=valid.device).split(size):
            yield SharedTextForks, texts, places.expand(len(texts), -1)


def _forked(lm: CausalLM, valid: Tensor, active: Tensor, config: ThoughtConfig) -> Iterator[Group]:
    """Rows of one text and one position each, prefixes of like length together."""
    texts, places = active.nonzero(as_tuple=True)
    rows = max(1, min(PREFIX_TOKENS // valid.shape[1], ELEMENTS // (config.n_thoughts * lm.vocab_size)))
    order = torch.argsort(places, stable=True)
    for texts_now, places_now in zip(texts[order].split(rows), places[order].split(rows), strict=True):
        yield ForkedStates, texts_now, places_now[:, None]


def _empty(positions: Tensor, config: ThoughtConfig) -> dict[str, Tensor]:
    shape, device = (*positions.shape, config.n_thoughts, config.length), positions.device
    filler = 0 if config.end is None else config.end
    return {
        "tokens": torch.full(shape, filler, device=device),
        "mask": torch.zeros(shape, dtype=torch.bool, device=device),
        "drawn": torch.zeros(shape, dtype=torch.bool, device=device),
        "log_probs": torch.zeros(shape, device=device),
        "policy_log_probs": torch.zeros(shape, device=device),
    }


def _think(forks, active: Tensor, numbers: Tensor | None, config: ThoughtConfig) -> dict[str, Tensor]:
    """Token after token until all thoughts of the group have ended; active [N, G], numbers [N, G, K, L] or None."""
    found, n_start = _empty(active, config), len(config.start)
    running = active[..., None].expand(-1, -1, config.n_thoughts).clone()
    logits = forks.first[:, :, None].expand(-1, -1, config.n_thoughts, -1)
    if n_start:
        found["tokens"][..., :n_start] = torch.tensor(config.start, device=active.device)
        found["mask"][..., :n_start] = running[..., None]
        logits = forks.feed(found["tokens"][..., :n_start])
    for step in range(n_start, config.length):
        own = policy(logits, config.temperature, config.top_p)
        token = draw(own, None if numbers is None else numbers[..., step])
        token = torch.where(running, token, found["tokens"][..., step])
        found["tokens"][..., step] = token
        found["mask"][..., step] = found["drawn"][..., step] = running
        for name, log_probs in (("policy_log_probs", own), ("log_probs", policy(logits, 1.0, 1.0))):
            found[name][..., step] = log_probs.gather(-1, token[..., None])[..., 0].where(running, 0.0)
        if config.end is not None:
            running = running & (token != config.end)
        if not bool(running.any()) or step == config.length - 1:
            break
        logits = forks.feed(token[..., None])
    return found
