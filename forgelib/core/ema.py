"""An exponential moving average of a model's weights: the average is what gets published."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """w_ema <- d w_ema + (1 - d) w after every step, with d = min(decay, (1 + t) / (10 + t)) (TRM, 2510.04871, 2.6).

    The rising d lets a short run forget its random start. Integer buffers are copied as they are.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay}: must be at least 0 and below 1")
        self.decay, self.n_updates = decay, 0
        self.average = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights as they are now."""
        self.n_updates += 1
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        current = model.state_dict()
        floating = [name for name, value in self.average.items() if value.is_floating_point()]
        torch._foreach_lerp_([self.average[n] for n in floating], [current[n] for n in floating], 1 - decay)
        for name in self.average.keys() - set(floating):
            self.average[name].copy_(current[name])

    def copy_to(self, model: nn.Module) -> None:
        """Put the average into the model."""
        model.load_state_dict(self.average)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The average in the model for a while, and then its own weights again, bit for bit."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        self.copy_to(model)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, int | dict[str, Tensor]]:
        return {"n_updates": self.n_updates, "average": self.average}

    def load_state_dict(self, state: dict[str, int | dict[str, Tensor]]) -> None:
        self.n_updates = int(state["n_updates"])
        for name, value in state["average"].items():
            self.average[name].copy_(value)
