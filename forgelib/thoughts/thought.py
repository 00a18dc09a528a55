"""What is asked of thoughts, and thoughts as they were sampled.

Shape legend: B texts, T tokens, P positions, K thoughts, L tokens of a thought.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: Stands in `positions` where a text has fewer positions than others.
NO_POSITION = -1


@dataclass(frozen=True)
class ThoughtConfig:
    """n_thoughts: K at each position. length: L, tokens of a thought, given ones and the end token included.

    start: token ids that every thought begins with. end: the token id that ends one, None: all have `length` tokens.
    temperature: 0 means greedy. top_p: share of the probability that the nucleus holds, 1 means all of it.
    Raises ValueError naming a field that is out of range.
    """

    n_thoughts: int = 4
    length: int = 12
    start: tuple[int, ...] = ()
    end: int | None = None
    temperature: float = 1.0
    top_p: float = 0.9

    def __post_init__(self):
        rules = [
            (self.n_thoughts >= 1, "n_thoughts", "at least 1"),
            (self.length > len(self.start), "length", f"more than the {len(self.start)} tokens of `start`"),
            (self.temperature >= 0, "temperature", "0 (greedy) or above"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1"),
        ]
        for holds, field, allowed in rules:
            if not holds:
                raise ValueError(f"ThoughtConfig.{field} = {getattr(self, field)!r}: must be {allowed}")


@dataclass(frozen=True)
class Thoughts:
    """K thoughts at each of P positions of B texts.

    tokens [B, P, K, L]: token ids; after a thought's end, its end token again.
    mask [B, P, K, L]: True for the tokens of a thought, its start and end among them; False after the end, and in all
        of a position that holds padding or no token.
    drawn [B, P, K, L]: True for the tokens that the model chose itself, so without the start tokens given to it.
    log_probs [B, P, K, L]: nats, of the drawn tokens under the model's full distribution at temperature 1; 0 elsewhere.
    policy_log_probs [B, P, K, L]: nats, under the distribution they were drawn from (temperature and nucleus): what
        REINFORCE differentiates. With temperature 1 and top_p 1 the two are the same; greedy tokens have 0.
    positions [B, P]: index of the text token that each thought follows; -1: none.
    """

    tokens: Tensor
    mask: Tensor
    drawn: Tensor
    log_probs: Tensor
    policy_log_probs: Tensor
    positions: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each thought, [B, P, K]."""
        return self.mask.sum(-1)


def text_mask(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """True at the real tokens, [B, T]. Raises ValueError for shapes that do not fit and for a text without a token."""
    if input_ids.dim() != 2 or not input_ids.numel():
        raise ValueError(f"input_ids must be [batch, tokens] with at least one token, not {tuple(input_ids.shape)}")
    valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    if valid.shape != input_ids.shape:
        raise ValueError(f"attention_mask is {tuple(valid.shape)}, input_ids {tuple(input_ids.shape)}: must agree")
    if not bool(valid.any(1).all()):
        raise ValueError("a text has no token: its attention_mask is 0 everywhere")
    return valid


def resolve_positions(positions: Tensor | None, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [B, P] and which of them hold a real token [B, P]; from None (all), [P] (for every text) or [B, P].

    Raises ValueError for an index outside the text.
    """
    batch, length = valid.shape
    if positions is None:
        positions = torch.arange(length, device=valid.device)
    positions = positions.to(valid.device)
    positions = positions.expand(batch, -1) if positions.dim() == 1 else positions
    if positions.dim() != 2 or len(positions) != batch or not positions.shape[1]:
        raise ValueError(f"positions must be [P] or [{batch}, P] with at least one, not {tuple(positions.shape)}")
    low, high = int(positions.min()), int(positions.max())
    if low < NO_POSITION or high >= length:
        raise ValueError(
            f"positions run from {low} to {high}: a text of {length} tokens has 0 to {length - 1} (-1: none)"
        )
    return positions, (positions >= 0) & valid.gather(1, positions.clamp_min(0))


def check_context(valid: Tensor, positions: Tensor, active: Tensor, lengths: Tensor, context: int | None) -> int:
    """Tokens of the longest row, text and thought; lengths [B, P] of the longest thought at each position.

    Raises ValueError where a model's context is shorter, and where no position holds a token.
    """
    if not bool(active.any()):
        raise ValueError("no position holds a token: there is nothing to think about")
    before, thought = valid.cumsum(1).gather(1, positions.clamp_min(0))[active], lengths[active]
    worst = int((before + thought).argmax())
    longest = int(before[worst] + thought[worst])
    if context is not None and longest > context:
        raise ValueError(
            f"thoughts of {int(thought[worst])} tokens after {int(before[worst])} of text make {longest}, the model's "
            f"context holds {context}: take shorter thoughts or texts"
        )
    return longest
