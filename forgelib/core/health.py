"""Silent failures made loud: numbers that are not finite, losses that diverge or no longer move."""

import math
from collections.abc import Callable

import torch
from torch import nn


class NonFiniteError(RuntimeError):
    """Training met NaN or infinity. `step` and `where` say at which step and in which layer first."""

    def __init__(self, step: int, where: str):
        self.step, self.where = step, where
        super().__init__(
            f"step {step}: the first number that is not finite came from {where}. The weights of the step before are "
            "unharmed in the last checkpoint. Look at the batch of this step; if it is clean, lower the learning rate."
        )


class DivergedError(RuntimeError):
    """The loss ran away; the text says from where to where."""


def first_nonfinite(model: nn.Module, forward: Callable[[], object]) -> str | None:
    """Name of what first becomes NaN or infinite: a weight, a buffer, a module's output or a gradient; None if nothing.

    `forward` runs the model once more on the batch in question, so that the modules can be watched in order.
    """
    for kind, named in (("the weight", model.named_parameters()), ("the buffer", model.named_buffers())):
        for name, tensor in named:
            if _broken(tensor):
                return f"{kind} {name}"
    found: list[str] = []

    def watch(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            if not found and any(_broken(tensor) for tensor in _tensors(output)):
                fed = any(_broken(tensor) for tensor in _tensors(inputs))
                found.append(f"the {'input' if fed else 'output'} of layer {name} ({type(module).__name__})")

        return hook

    handles = [module.register_forward_hook(watch(name or "model")) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            forward()
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and _broken(parameter.grad):
            return f"the gradient of {name}"
    return None


class LossMonitor:
    """Watches the loss, smoothed over about `window` steps.

    Divergence: after a warm-up of one window the smoothed loss stands above its best b by more than
    (factor - 1) max(|b|, floor) for `patience` steps: DivergedError. The floor, in units of the loss, keeps a loss
    near zero, or a negative one, from looking like it. Plateau: no new best by 0.1% for `plateau_steps` steps; told by
    `plateau`, nothing is raised.
    """

    def __init__(
        self, window: int = 20, factor: float = 2.0, patience: int = 20, plateau_steps: int = 200, floor: float = 0.1
    ):
        self.window, self.factor, self.patience, self.plateau_steps = window, factor, patience, plateau_steps
        self.floor = floor
        self.restart()

    def restart(self) -> None:
        """Begin anew where the task changes, as at a new stage of a curriculum."""
        self.seen, self.smoothed, self.best, self.best_step, self.bad_steps = 0, 0.0, float("inf"), 0, 0

    def update(self, step: int, loss: float) -> None:
        """Take in the loss of a step. Raises DivergedError, and NonFiniteError for a loss that is no number."""
        if not math.isfinite(loss):
            raise NonFiniteError(step, "the loss")
        self.seen += 1
        rate = 1 / min(self.seen, self.window)
        self.smoothed += rate * (loss - self.smoothed)
        if self.seen < self.window:
            return
        if self.best == math.inf or self.smoothed < self.best - 0.001 * abs(self.best):
            self.best, self.best_step = self.smoothed, self.seen
        limit = self.best + (self.factor - 1) * max(abs(self.best), self.floor)
        self.bad_steps = self.bad_steps + 1 if self.smoothed > limit else 0
        if self.bad_steps >= self.patience:
            raise DivergedError(
                f"step {step}: the loss has stood above {limit:.3g} for {self.patience} steps, now at "
                f"{self.smoothed:.3g}; its best was {self.best:.3g}. Lower the learning rate or warm up longer."
            )

    @property
    def plateau(self) -> bool:
        """True when the best loss is `plateau_steps` steps old."""
        return self.seen - self.best_step >= self.plateau_steps and self.best < float("inf")

    def state_dict(self) -> dict:
        best = None if self.best == float("inf") else self.best
        return {
            "seen": self.seen,
            "smoothed": self.smoothed,
            "best": best,
            "best_step": self.best_step,
            "bad_steps": self.bad_steps,
        }

    def load_state_dict(self, state: dict) -> None:
        self.seen, self.smoothed, self.best_step = state["seen"], state["smoothed"], state["best_step"]
        self.best = float("inf") if state["best"] is None else state["best"]
        self.bad_steps = state["bad_steps"]


def _broken(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors(item)]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []
