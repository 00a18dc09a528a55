"""QK-Clip (Kimi K2, 2507.20534, algorithm 1): after the step, scale the weights of heads whose logits grew too large.

    S_h > tau:    W_q^h <- W_q^h sqrt(tau / S_h),    W_k^h <- W_k^h sqrt(tau / S_h)

S_h is the largest scaled attention logit, before the softmax, that head h really produced in the forward pass. The
logit is bilinear in the two projections (rotary positions included), so afterwards the same input gives tau exactly.
Weights change, and nothing in the forward pass: no activation is clipped.

A key head that several query heads share (grouped-query attention) is left alone and W_q^h takes all of tau / S_h, as
in K2 for the parts that heads share: a clipped head then cannot move the logits of its neighbours.
"""

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Projection(NamedTuple):
    """Views on a projection's parameters with one row for each output: weight [H d, D], bias [H d] or None."""

    weight: Tensor
    bias: Tensor | None

    def scale(self, factors: Tensor) -> None:
        """Multiply the rows of each head, in place, by its factor; factors [H]. A factor of 1 changes no bit."""
        rows = factors.to(self.weight).repeat_interleave(self.weight.shape[0] // len(factors))
        self.weight.mul_(rows[:, None])
        if self.bias is not None:
            self.bias.mul_(rows)


def projections(module: nn.Module) -> tuple[Projection, Projection] | None:
    """Query and key projection of an attention module, or None where it has neither form:
    q_proj and k_proj (nn.Linear), or GPT-2's c_attn (Conv1D [D, 3 D], columns q, k, v)."""
    separate = [getattr(module, name, None) for name in ("q_proj", "k_proj")]
    if all(isinstance(p, nn.Linear) for p in separate):
        return tuple(Projection(p.weight.detach(), None if p.bias is None else p.bias.detach()) for p in separate)
    fused = getattr(module, "c_attn", None)
    if type(fused).__name__ == "Conv1D" and fused.weight.shape[1] == 3 * fused.weight.shape[0]:
        weight, bias = fused.weight.detach().mT, fused.bias.detach()
        return tuple(Projection(w, b) for w, b in list(zip(weight.chunk(3), bias.chunk(3), strict=True))[:2])
    return None


def clippable_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The submodules with an attribute `max_logits`, by name. Raises ValueError where such a one cannot be clipped."""
    found = {name: module for name, module in model.named_modules() if hasattr(module, "max_logits")}
    for name, module in found.items():
        if projections(module) is None:
            raise ValueError(
                f"{name} ({type(module).__name__}) reports attention logits but has neither q_proj and k_proj nor a "
                "c_attn of three equal parts, so QK-Clip cannot scale its heads: set qk_clip_threshold=None"
            )
    return found


@torch.no_grad()
def clip_heads(modules: dict[str, nn.Module], threshold: float) -> dict[str, list[int]]:
    """Scale the heads whose `max_logits` [H] exceed `threshold`; then `max_logits` is None again.

    With several processes the largest logit of any of them counts, so that all keep the same weights. Returns the
    clipped heads of each module that had any. Raises FloatingPointError naming module and heads where a maximum is
    NaN or infinite: scaling by it would turn a head's weights to zero or NaN.
    """
    maxima = _over_all_processes(modules)
    clipped = {}
    for (name, module), largest in zip(modules.items(), maxima, strict=True):
        module.max_logits = None
        if largest is None:
            continue
        broken = largest.isnan() | (largest == float("inf"))
        if bool(broken.any()):
            heads = broken.nonzero().flatten().tolist()
            raise FloatingPointError(f"{name}: the attention logits of head(s) {heads} were NaN or infinite")
        exceeds = largest > threshold
        if not bool(exceeds.any()):
            continue
        factors = torch.where(exceeds, threshold / largest.double(), 1.0)
        query, key = projections(module)
        if key.weight.shape[0] == query.weight.shape[0]:
            query.scale(factors.sqrt())
            key.scale(factors.sqrt())
        else:
            query.scale(factors)
        clipped[name] = exceeds.nonzero().flatten().tolist()
    return clipped


def _over_all_processes(modules: dict[str, nn.Module]) -> list[Tensor | None]:
    """Element-wise the largest over the processes; None where a module ran in none of them. NaN counts as infinite."""
    maxima = [module.max_logits for module in modules.values()]
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1 or not maxima:
        return maxima
    device = next(next(iter(modules.values())).parameters()).device
    heads = torch.tensor([0 if m is None else len(m) for m in maxima], device=device)
    dist.all_reduce(heads, dist.ReduceOp.MAX)
    shares = torch.full((int(heads.sum()),), float("-inf"), device=device).split(heads.tolist())
    for share, own in zip(shares, maxima, strict=True):
        if own is not None:
            share.copy_(own.nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=float("-inf")))
    flat = torch.cat(shares)
    dist.all_reduce(flat, dist.ReduceOp.MAX)
    return [share if len(share) else None for share in flat.split(heads.tolist())]
