"""AdamW (Loshchilov & Hutter 2019, algorithm 2) through torch's fused kernel: one pass over memory a step.

m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2
p <- (1 - lr wd) p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
"""

import torch
from torch import Tensor
from torch.optim.adamw import adamw


def fresh_moments(parameter: Tensor) -> dict[str, Tensor]:
    """exp_avg and exp_avg_sq as the parameter, zero; step, a float32 scalar on its device, the steps done."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter),
        "exp_avg_sq": torch.zeros_like(parameter),
    }


def adamw_update(
    parameters: list[Tensor],
    gradients: list[Tensor],
    first: list[Tensor],
    second: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update parameters and moments in place; `steps` (t - 1) are read, not counted up: the caller does, once a step,
    because it may pass a large parameter in several pieces."""
    adamw(
        parameters,
        gradients,
        first,
        second,
        [],
        [step.clone() for step in steps],
        fused=True,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=False,
    )
