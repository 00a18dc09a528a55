"""SLERP: along the great circle between two tensors (Shoemake 1985), each taken as one flat vector.

    slerp(a, b, t) = sin((1-t) theta) / sin(theta) a + sin(t theta) / sin(theta) b,    cos(theta) = a.b / (|a| |b|)

Nearly parallel (or opposite) tensors, |cos| > 0.9995, and a tensor of zeros are interpolated in a straight line. The
models that were fine-tuned from one trunk usually are that near, and SLERP is then Linear.
"""

import math

import torch
from torch import Tensor

NEARLY_PARALLEL = 0.9995


def circle_weights(a: Tensor, b: Tensor, t: float, piece: int = 2**17) -> tuple[float, float] | None:
    """What a and b are multiplied with; None where the straight line is to be taken.

    Products are summed in float32 within a piece, in float64 over the pieces; where one overflows or vanishes, in
    float64 throughout.
    """
    for dtype in (torch.float32, torch.float64):
        ab, aa, bb = _products(a.reshape(-1), b.reshape(-1), piece, dtype)
        if math.isfinite(aa * bb) and aa > 0 and bb > 0 and torch.float64 not in (a.dtype, b.dtype):
            break
    if aa == 0 or bb == 0:
        return None
    cosine = max(-1.0, min(1.0, ab / (math.sqrt(aa) * math.sqrt(bb))))
    if abs(cosine) > NEARLY_PARALLEL:
        return None
    theta = math.acos(cosine)
    return math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)


def _products(a: Tensor, b: Tensor, piece: int, dtype: torch.dtype) -> tuple[float, float, float]:
    sums = torch.zeros(3, dtype=torch.float64)
    for x, y in zip(a.split(piece), b.split(piece), strict=True):
        x, y = x.to(dtype), y.to(dtype)
        sums += torch.stack([torch.dot(x, y), torch.dot(x, x), torch.dot(y, y)])
    return tuple(sums.tolist())


def combine(out: Tensor, a: Tensor, b: Tensor, weights: tuple[float, float] | None, t: float) -> None:
    """Write weights_0 a + weights_1 b to `out`, or the point t of the straight line where `weights` is None."""
    if weights is None:
        torch.lerp(a, b, t, out=out)
    else:
        torch.mul(a, weights[0], out=out).add_(b, alpha=weights[1])
