"""QK-Clip (Kimi K2, 2507.20534): after the step, scale the weights of a head whose attention logits grew too large.

    S_h > tau:   W_q^h <- W_q^h sqrt(tau / S_h),   W_k^h <- W_k^h sqrt(tau / S_h)

S_h is the largest logit that the forward pass really saw. A module takes part when it has `q_proj`, `k_proj`,
`num_heads` and a `max_logits` (Tensor [heads], or None where it was not run); with fewer key heads than query heads
(`num_key_value_heads`) a shared key takes the square root of its group's strongest clip, each query the rest.
"""

import torch
from torch import Tensor, nn


def clipping_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every attention module that reports its largest logits."""
    wanted = ("q_proj", "k_proj", "num_heads", "max_logits")
    return {name: m for name, m in model.named_modules() if all(hasattr(m, attribute) for attribute in wanted)}


@torch.no_grad()
def clip(modules: dict[str, nn.Module], threshold: float) -> dict[str, list[int]]:
    """Scale the heads beyond `threshold`, forget the maxima. Returns the clipped heads of each module that had any."""
    clipped = {}
    for name, module in modules.items():
        largest, module.max_logits = module.max_logits, None
        if largest is None or not bool((largest > threshold).any()):
            continue
        shrink = torch.where(largest > threshold, threshold / largest.clamp_min(threshold), torch.ones_like(largest))
        groups = getattr(module, "num_key_value_heads", module.num_heads)
        key_shrink = shrink.view(groups, -1).amin(dim=1).sqrt()
        query_shrink = shrink / key_shrink.repeat_interleave(module.num_heads // groups)
        _scale_heads(module.q_proj, query_shrink)
        _scale_heads(module.k_proj, key_shrink)
        clipped[name] = (largest > threshold).nonzero().flatten().tolist()
    return clipped


def _scale_heads(projection: nn.Linear, factors: Tensor) -> None:
    """Multiply the output rows of each head (and its bias) by its factor; a factor of 1 changes no bit."""
    rows = factors.to(projection.weight).repeat_interleave(projection.weight.shape[0] // len(factors))
    projection.weight.mul_(rows[:, None])
    if projection.bias is not None:
        projection.bias.mul_(rows)
