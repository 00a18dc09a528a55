"""Thoughts that share their text: a causal-plus-diagonal mask lets one forward pass advance all of them by a token.

              text      thought tokens 1   thought tokens 2          (keys)
    text      causal    -                  -
    token 1   prefix    diagonal           -
    token 2   prefix    diagonal           diagonal

A thought at position p sees the text up to p and its own tokens so far, nothing of its neighbours'; its tokens count
positions on from p. It is what the model would have thought after that prefix alone (Quiet-STaR, 2403.09629, fig. 3).

Shape legend: B texts, T tokens, P positions, K thoughts, L thought tokens, N newly fed ones, D width, V vocabulary.
"""

import torch
from torch import Tensor
from transformers import DynamicCache


def prefix_part(valid: Tensor, columns: Tensor) -> Tensor:
    """Which text tokens (valid [B, T], False at padding) are seen from positions columns [B, P]; [B, P, T]."""
    return valid[:, None, :] & (torch.arange(valid.shape[1], device=valid.device) <= columns[:, :, None])


def diagonal_part(n_positions: int, n_old: int, n_new: int, device: torch.device) -> Tensor:
    """Which thought tokens each new one sees: [N P, (old + N) P], token by token, in each the positions in order."""
    steps = torch.arange(n_old + n_new, device=device)
    earlier = steps[None, :] <= steps[n_old:, None]
    return torch.kron(earlier, torch.eye(n_positions, dtype=torch.bool, device=device))


class SharedTextForks:
    """K forks at each of P positions of B texts: `first` [B, P, V] are the logits there, before any thought."""

    def __init__(self, lm, input_ids: Tensor, valid: Tensor, columns: Tensor, n_thoughts: int):
        """lm: a `CausalLM` that takes masks. valid [B, T], columns [B, P] indices into the text."""
        self.lm, self.columns, self.n_thoughts, self.n_fed = lm, columns, n_thoughts, 0
        kept, index = torch.unique(columns, return_inverse=True)
        position_ids = lm.position_ids(valid)
        read = lm.read(input_ids, valid.long(), position_ids, keep=kept, cache=DynamicCache(), use_cache=True)
        self.first = read.logits.gather(1, index[..., None].expand(-1, -1, read.logits.shape[-1]))
        self.cache = read.cache
        self.cache.batch_repeat_interleave(n_thoughts)
        self.depth = position_ids.gather(1, columns) + 1
        self.prefix = prefix_part(valid, columns)

    def feed(self, tokens: Tensor) -> Tensor:
        """Add tokens [B, P, K, N] to the thoughts; logits [B, P, K, V] after the last of them."""
        batch, n_positions, n_thoughts, n_new = tokens.shape
        rows = tokens.permute(0, 2, 3, 1).reshape(batch * n_thoughts, n_new * n_positions)
        steps = torch.arange(self.n_fed, self.n_fed + n_new, device=tokens.device)
        position_ids = (self.depth[:, None, :] + steps[:, None]).flatten(1).repeat_interleave(n_thoughts, 0)
        diagonal = diagonal_part(n_positions, self.n_fed, n_new, tokens.device)
        seen = torch.cat([self.prefix.repeat(1, n_new, 1), diagonal.expand(batch, -1, -1)], -1)
        mask = self.lm.mask(seen)[:, None].repeat_interleave(n_thoughts, 0)
        last = torch.arange((n_new - 1) * n_positions, n_new * n_positions, device=tokens.device)
        read = self.lm.read(rows, mask, position_ids, keep=last, cache=self.cache, use_cache=True)
        self.cache, self.n_fed = read.cache, self.n_fed + n_new
        return read.logits.unflatten(0, (batch, n_thoughts)).transpose(1, 2)


def read_shared_text(lm, input_ids: Tensor, valid: Tensor, columns: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Given thoughts tokens [B, P, L] in one forward pass, text and thoughts side by side, without a cache.

    Returns the logits [B, P, L, V] that each thought token is drawn from, and the states [B, P, L, D] after each.
    """
    length, (batch, n_positions, n_tokens) = input_ids.shape[1], tokens.shape
    device, position_ids = tokens.device, lm.position_ids(valid)
    thought_positions = position_ids.gather(1, columns)[:, None] + 1 + torch.arange(n_tokens, device=device)[:, None]
    causal = prefix_part(valid, torch.arange(length, device=device).expand(batch, -1))
    causal = causal | torch.eye(length, dtype=torch.bool, device=device)
    above = torch.zeros((batch, length, n_positions * n_tokens), dtype=torch.bool, device=device)
    diagonal = diagonal_part(n_positions, 0, n_tokens, device).expand(batch, -1, -1)
    prefix = prefix_part(valid, columns).repeat(1, n_tokens, 1)
    seen = torch.cat([torch.cat([causal, above], -1), torch.cat([prefix, diagonal], -1)], 1)
    kept, index = torch.unique(columns, return_inverse=True)
    thoughts = length + torch.arange(n_positions * n_tokens, device=device)
    read = lm.read(
        torch.cat([input_ids, tokens.transpose(1, 2).flatten(1)], 1),
        lm.mask(seen)[:, None],
        torch.cat([position_ids, thought_positions.flatten(1)], 1),
        keep=torch.cat([kept, thoughts]),
    )
    first = read.logits[:, : len(kept)].gather(1, index[..., None].expand(-1, -1, read.logits.shape[-1]))
    after, states = (x[:, len(kept) :].unflatten(1, (n_tokens, n_positions)) for x in (read.logits, read.states))
    logits = torch.cat([first[:, None], after[:, :-1]], 1)
    return logits.transpose(1, 2), states.transpose(1, 2)
