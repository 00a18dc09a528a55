"""Small weights of a model: a trunk's, or those of a parent that moved away from it."""

import torch

SHAPES = {
    "model.embed_tokens.weight": (20, 8),
    **{f"model.layers.{i}.{part}": shape for i in range(4) for part, shape in (("q.weight", (8, 8)), ("norm", (8,)))},
    "model.norm.weight": (8,),
    "model.scale": (),
}


def weights(seed: int, around: dict | None = None, step: float = 1.0, dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Normal numbers of the seed, `step` long, added to `around` where that is given."""
    g = torch.Generator().manual_seed(seed)
    drawn = {name: step * torch.randn(shape, generator=g, dtype=torch.float64) for name, shape in SHAPES.items()}
    return {name: (t if around is None else around[name].double() + t).to(dtype) for name, t in drawn.items()}
