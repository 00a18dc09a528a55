"""MuonGrokfast: Grokfast gradient filter -> Muon for hidden matrices, AdamW for the rest -> QK-Clip."""

from collections import defaultdict

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from .config import MuGrokConfig
from .grokfast import amplify
from .newton_schulz import orthogonalize
from .qk_clip import clip, clipping_modules


class MuonGrokfast(torch.optim.Optimizer):
    """One optimizer for the whole model.

    Muon takes every parameter with two dimensions, both larger than 1, that is no embedding and no output head;
    AdamW takes the rest. Weight decay is decoupled and spares norms, biases and other one-dimensional parameters.
    `param_groups` are named "muon", "adamw" and "adamw_no_decay"; schedulers may scale their "lr".

    `last_clip` holds the heads that QK-Clip scaled in the last step, by module name. A gradient with NaN is not
    repaired here: check the loss before the step.
    """

    def __init__(self, model: nn.Module, config: MuGrokConfig):
        self.config = config
        groups = [
            {"name": name, "params": params, "lr": lr, "weight_decay": decay}
            for name, params, lr, decay in _grouped(model, config)
            if params
        ]
        if not groups:
            raise ValueError("the model has no parameter that requires a gradient")
        super().__init__(groups, {})
        self._attention = clipping_modules(model)
        self.last_clip: dict[str, list[int]] = {}

    @torch.no_grad()
    def step(self, closure=None) -> None:
        """One update from the gradients that are there; parameters without a gradient are left alone."""
        if closure is not None:
            raise ValueError("MuonGrokfast takes no closure: compute the loss before the step")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                gradients = self._amplified(params)
                update = self._muon if group["name"] == "muon" else self._adamw
                update(group, params, gradients)
        self.last_clip = clip(self._attention, self.config.qk_clip_threshold)

    def _amplified(self, params: list[Tensor]) -> list[Tensor]:
        gradients = [p.grad for p in params]
        if self.config.grokfast_lambda == 0:
            return gradients
        for p in params:
            if "slow" not in self.state[p]:
                self.state[p]["slow"] = p.grad.clone()
        slow = [self.state[p]["slow"] for p in params]
        return amplify(gradients, slow, self.config.grokfast_alpha, self.config.grokfast_lambda)

    def _muon(self, group: dict, params: list[Tensor], gradients: list[Tensor]) -> None:
        """Nesterov momentum, orthogonal factor, scaled by sqrt(max(1, rows / columns)) as in the original Muon."""
        for p in params:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta, beta = [self.state[p]["momentum"] for p in params], self.config.muon_momentum
        torch._foreach_lerp_(momenta, gradients, 1 - beta)
        updates = torch._foreach_lerp(gradients, momenta, beta)
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        stacks = defaultdict(list)
        for p, update in zip(params, updates, strict=True):
            stacks[p.shape].append((p, update))
        for (rows, columns), members in stacks.items():
            directions = orthogonalize(torch.stack([update for _, update in members]))
            scale = group["lr"] * max(1.0, rows / columns) ** 0.5
            torch._foreach_add_([p for p, _ in members], list(directions.unbind()), alpha=-scale)

    def _adamw(self, group: dict, params: list[Tensor], gradients: list[Tensor]) -> None:
        for p in params:
            if "exp_avg" not in self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
                self.state[p]["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
        states = [self.state[p] for p in params]
        beta1, beta2 = self.config.adamw_betas
        adamw(
            params,
            gradients,
            [s["exp_avg"] for s in states],
            [s["exp_avg_sq"] for s in states],
            [],
            [s["step"] for s in states],
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=self.config.adamw_eps,
            maximize=False,
        )


def _grouped(model: nn.Module, config: MuGrokConfig):
    """(name, parameters, learning rate, weight decay) of the three groups; a shared parameter counts once."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        embeddings |= {id(p) for p in head.parameters()}
    muon, decayed, spared = [], [], []
    for p in model.parameters():
        if not p.requires_grad:
            continue
        if p.dim() == 2 and min(p.shape) > 1 and id(p) not in embeddings:
            muon.append(p)
        else:
            (decayed if p.dim() > 1 else spared).append(p)
    adamw_lr = config.muon_lr if config.adamw_lr is None else config.adamw_lr
    yield "muon", muon, config.muon_lr, config.weight_decay
    yield "adamw", decayed, adamw_lr, config.weight_decay
    yield "adamw_no_decay", spared, adamw_lr, 0.0
