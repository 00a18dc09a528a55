"""Thoughts of a model with a recurrent state: the state is forked at each position, exact by construction.

A memory that learns while it reads cannot be told by a mask to forget what comes after position p. So every prefix is a
row of its own, padded on the left, read once for all rows together; its state is then copied for each thought, and one
forward pass advances all thoughts by a token.

Shape legend: R rows (text and position), T tokens, M longest prefix, K thoughts, L thought tokens, N newly fed ones,
V vocabulary, D width.
"""

import torch
from torch import Tensor


def prefixes(input_ids: Tensor, valid: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """The real tokens of row r up to columns[r], padded on the left: ids [R, M] and which of them are real [R, M].

    Args: input_ids, valid [R, T]; columns [R].
    """
    upto = valid & (torch.arange(valid.shape[1], device=valid.device) <= columns[:, None])
    n_real = upto.sum(1)
    longest = int(n_real.max())
    order = torch.argsort(upto.to(torch.uint8), dim=1, stable=True)[:, -longest:]  # the real ones last, in their order
    real = torch.arange(longest, device=valid.device) >= (longest - n_real)[:, None]
    return input_ids.gather(1, order) * real, real


class ForkedStates:
    """K forks of R rows: `first` [R, 1, V] are the logits after each prefix. Each row has one position."""

    def __init__(self, lm, input_ids: Tensor, valid: Tensor, columns: Tensor, n_thoughts: int):
        """lm: any `CausalLM` with a cache. input_ids, valid [R, T]; columns [R, 1]."""
        self.lm, self.n_thoughts = lm, n_thoughts
        ids, real = prefixes(input_ids, valid, columns[:, 0])
        read = self._prefill(ids, real)
        self.first, self.cache = read.logits, read.cache
        if hasattr(self.cache, "batch_repeat_interleave"):
            self.cache.batch_repeat_interleave(n_thoughts)
        elif n_thoughts > 1:
            self.cache = self._prefill(*(x.repeat_interleave(n_thoughts, 0) for x in (ids, real))).cache
        self.real = real.repeat_interleave(n_thoughts, 0)

    def _prefill(self, ids: Tensor, real: Tensor):
        last = torch.tensor([ids.shape[1] - 1], device=ids.device)
        read = self.lm.read(ids, real.long(), self.lm.position_ids(real), keep=last, use_cache=True)
        if read.cache is None:
            raise ValueError(
                f"{type(self.lm.model).__name__} returns no past_key_values: its thoughts cannot go on from a state"
            )
        return read

    def feed(self, tokens: Tensor) -> Tensor:
        """Add tokens [R, 1, K, N] to the thoughts; logits [R, 1, K, V] after the last of them."""
        rows, _, n_thoughts, n_new = tokens.shape
        new = tokens.reshape(rows * n_thoughts, n_new)
        self.real = torch.cat([self.real, torch.ones_like(new, dtype=torch.bool)], 1)
        position_ids = self.lm.position_ids(self.real)[:, -n_new:]
        last = torch.tensor([n_new - 1], device=tokens.device)
        mask = self.real.long()
        read = self.lm.read(new, mask, position_ids, keep=last, cache=self.cache, use_cache=True)
        self.cache = read.cache
        return read.logits.view(rows, 1, n_thoughts, -1)


def read_forked_state(lm, input_ids: Tensor, valid: Tensor, columns: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Given thoughts tokens [R, 1, L], each after its own prefix, in one forward pass without a cache.

    Returns the logits [R, 1, L, V] that each thought token is drawn from, and the states [R, 1, L, D] after each.
    """
    ids, real = prefixes(input_ids, valid, columns[:, 0])
    longest, n_tokens = ids.shape[1], tokens.shape[-1]
    real = torch.cat([real, torch.ones_like(tokens[:, 0], dtype=torch.bool)], 1)
    keep = torch.arange(longest - 1, longest + n_tokens, device=ids.device)
    position_ids = lm.position_ids(real)
    read = lm.read(torch.cat([ids, tokens[:, 0]], 1), real.long(), position_ids, keep=keep)
    return read.logits[:, None, :-1], read.states[:, None, 1:]
