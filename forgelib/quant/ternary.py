"""Ternary weights and int8 activations: w ~ scale * {-1, 0, +1}, x ~ unit * {-127 ... 127}.

absmean (BitNet b1.58, 2402.17764, eq. 1-3): gamma = mean |w|, code = clip(round(w / gamma), -1, 1), scale = gamma.
threshold (Ternary Weight Networks, 1605.04711): what is below a share of mean |w| becomes 0, the rest its sign; the
scale is the mean |w| of the rest, which leaves the least squared error for these signs.

Shape legend: N outputs, K inputs. Codes are signs in {-1, 0, +1}, int8 [N, K]; scales are float32 [N].
"""

from dataclasses import dataclass

import torch
from torch import Tensor

#: A mean or an absmax below this counts as this, so that a row of zeros stays a row of zeros.
SMALLEST = 1e-5


@dataclass(frozen=True)
class Rounding:
    """How a weight becomes ternary.

    per_row: a scale for each output instead of one for the layer. threshold: None for absmean, else the share of
    mean |w| below which a weight becomes 0 (`core.sizing` has one for each size class).
    """

    per_row: bool = False
    threshold: float | None = None

    def __post_init__(self):
        if self.threshold is not None and not 0 <= self.threshold < 10:
            raise ValueError(
                f"threshold = {self.threshold}: a share of mean |w| from 0 to below 10, or None for absmean"
            )


def ternarize(weight: Tensor, rounding: Rounding = Rounding()) -> tuple[Tensor, Tensor]:
    """Signs int8 [N, K] and scales float32 [N] of a weight [N, K]. Raises ValueError for NaN or infinity."""
    weight = weight.detach().float()
    if weight.dim() != 2 or not weight.numel():
        raise ValueError(f"a weight is [outputs, inputs], both at least 1, not {list(weight.shape)}")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weight holds NaN or infinity: go back to the last good checkpoint")
    size = weight.abs()
    mean = (size.mean(dim=1, keepdim=True) if rounding.per_row else size.mean()).clamp_min(SMALLEST)
    if rounding.threshold is None:
        signs, scales = (weight / mean).round().clamp(-1, 1), mean
    else:
        kept = size >= rounding.threshold * mean
        signs, kept_sizes = weight.sign() * kept, size * kept
        dims = {"dim": 1, "keepdim": True} if rounding.per_row else {}
        scales = kept_sizes.sum(**dims) / kept.sum(**dims).clamp_min(1)
    return signs.to(torch.int8), scales.expand(weight.shape[0], 1).reshape(-1).contiguous()


def round_weight(weight: Tensor, rounding: Rounding, share: float = 1.0) -> Tensor:
    """The weight as inference will use it, with the gradient of the weight itself (straight-through).

    share: 1 is ternary, 0 the weight as it is, in between a blend: the warm-up.
    """
    signs, scales = ternarize(weight, rounding)
    rounded = (signs * scales[:, None]).to(weight.dtype)
    return weight + share * (rounded - weight).detach() if share < 1 else rounded + (weight - weight.detach())


def round_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 values [..., K] and units float32 [..., 1] of activations: x ~ value * unit, absmax of a token = 127 units.

    The one formula of all paths: round(x * (127 / absmax)), ties to even. A token with NaN or infinity has the unit
    NaN, so its outputs are NaN and not something that looks like an answer.
    """
    values, units = _scaled(x)
    return torch.nan_to_num(values, nan=0.0).round().to(torch.int8), units


def round_activations(x: Tensor, share: float = 1.0) -> Tensor:
    """The activations as inference will use them, with the gradient of x itself (straight-through)."""
    values, units = _scaled(x.detach())
    rounded = (values.round() * units).to(x.dtype)
    return x + share * (rounded - x).detach() if share < 1 else rounded + (x - x.detach())


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.float()
    largest = x.abs().amax(dim=-1, keepdim=True).clamp_min(SMALLEST)
    largest = torch.where(torch.isfinite(largest), largest, torch.nan)
    # A true division: torch writes `127.0 / largest` as 127 * (1 / largest), which rounds twice.
    return x * (torch.full_like(largest, 127.0) / largest), largest / 127.0
