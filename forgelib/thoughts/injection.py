"""Where thinking may pay: positions at which the model finds its text difficult.

Three parts, each between 0 and 1 and each a property of one position:

    entropy      of the next token's distribution, over log V
    dispersion   entropy of the attention, mean over layers and heads, over the log of the number of tokens in reach
    loss         1 - P(the token that follows)

The score is their mean. `loss` looks at the token that follows: it is for texts that are given, as in training; where
the next token is still to be written, leave it out.

Shape legend: B texts, T tokens, P positions, V vocabulary, H heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .causal_lm import CausalLM
from .thought import text_mask

#: Thoughts stand at least so many tokens apart.
GAP = 3
EAGER = "it needs the eager attention implementation: model.set_attn_implementation('eager')"


@dataclass(frozen=True)
class Difficulty:
    """parts: name -> [B, T], nan where it is not defined (padding; loss at a text's end). left_out: name -> why."""

    parts: Mapping[str, Tensor]
    left_out: Mapping[str, str]

    @property
    def score(self) -> Tensor:
        """Mean [B, T] of the parts that are defined at a position; nan at padding."""
        return torch.stack(list(self.parts.values())).nanmean(0)

    def without(self, name: str, why: str = "left out on request") -> "Difficulty":
        """The same without one part."""
        return Difficulty({k: v for k, v in self.parts.items() if k != name}, {**self.left_out, name: why})


@torch.no_grad()
def difficulty(model: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> Difficulty:
    """Read input_ids [B, T] once, in evaluation mode. Dispersion is left out where the model gives no attentions."""
    lm, valid = CausalLM(model), text_mask(input_ids, attention_mask)
    eager = getattr(lm.config, "_attn_implementation", None) == "eager"
    was_training = model.training
    model.eval()
    try:
        read = lm.read(input_ids, valid.long(), lm.position_ids(valid), attentions=eager)
    finally:
        model.train(was_training)
    log_probs = torch.log_softmax(read.logits.float(), -1)
    entropy = -(log_probs.exp() * log_probs).sum(-1) / torch.log(torch.tensor(float(log_probs.shape[-1])))
    parts = {"entropy": entropy, "loss": _loss(log_probs, input_ids, valid)}
    left_out = {}
    if read.attentions:
        parts["dispersion"] = _dispersion(read.attentions, valid)
    else:
        left_out["dispersion"] = "the model gives no attentions" + ("" if eager else f"; {EAGER}")
    return Difficulty({name: part.where(valid, float("nan")) for name, part in parts.items()}, left_out)


def _loss(log_probs: Tensor, input_ids: Tensor, valid: Tensor) -> Tensor:
    right = log_probs[:, :-1].gather(-1, input_ids[:, 1:, None])[..., 0].exp()
    known = (1 - right).where(valid[:, 1:], float("nan"))
    return torch.cat([known, known.new_full((len(known), 1), float("nan"))], 1)


def _dispersion(attentions: tuple[Tensor, ...], valid: Tensor) -> Tensor:
    """Entropy of attentions [B, H, T, T] over log of the number of keys; 0 for the first token, which has no choice."""
    total = sum(-(a.float() * a.float().clamp_min(1e-30).log()).sum(-1).mean(1) for a in attentions)
    choices = valid.cumsum(1).clamp_min(1).to(total.dtype)
    return total / len(attentions) / torch.log(choices.clamp_min(2))


def choose_positions(score: Tensor, n: int, gap: int = GAP) -> Tensor:
    """Up to n positions [B, n] of the highest score [B, T], at least `gap` tokens apart, in the text's order.

    Positions whose score is nan are never chosen; where a text has fewer, -1 fills the end. Ties go to the earlier one.
    Raises ValueError for n or gap below 1.
    """
    if n < 1 or gap < 1:
        raise ValueError(f"n = {n}, gap = {gap}: both must be at least 1")
    chosen = torch.full((len(score), n), -1)
    for row, values in enumerate(score.float().nan_to_num(nan=float("-inf")).cpu()):
        left, found = values.clone(), []
        while len(found) < n and bool((left > float("-inf")).any()):
            best = int(left.argmax())
            found.append(best)
            left[max(0, best - gap + 1) : best + gap] = float("-inf")
        chosen[row, : len(found)] = torch.tensor(sorted(found), dtype=chosen.dtype)
    return chosen.to(score.device)
