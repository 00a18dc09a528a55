"""MuonGrokfast: Grokfast gradient filter -> Muon for hidden matrices, AdamW for the rest -> QK-Clip."""

import copy
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .adamw import adamw_update, fresh_moments
from .config import MuGrokConfig
from .grokfast import amplify
from .muon_pass import apply, collect
from .newton_schulz import orthogonalize, product_dtype
from .qk_clip import clip_heads, clippable_modules
from .split import split_parameters
from .tiles import batches, row_blocks, tiles


class MuonGrokfast(torch.optim.Optimizer):
    """One optimizer for a whole model, a `torch.optim.Optimizer` that takes the model and a MuGrokConfig.

        g' = g + lambda h                                             Grokfast-EMA, every parameter
        b <- m b + (1 - m) g',   u = (1 - m) g' + m b                 Muon: Nesterov momentum, as torch.optim.Muon
        W <- (1 - lr wd) W - lr sqrt(max(1, outputs / inputs)) O(u)   O: the orthogonal factor by Newton-Schulz
        AdamW on g' for what `split_parameters` does not give to Muon
        QK-Clip on the attention modules that report `max_logits`

    `param_groups` are named "muon", "adamw" and "adamw_no_decay" (norms, biases and other vectors); an empty one is
    left out. Schedulers scale their "lr". `last_clip` holds the heads that the last step clipped, by module name.

    Gradients are read, never changed. NaN or infinity in a gradient passes into weights and averages: nothing is
    repaired or skipped here, so look at loss and gradient norm before the step (forgelib.core.health).
    Raises ValueError for a model it cannot train, naming the parameter or module (`split_parameters`, `qk_clip`), and
    TypeError for parameters instead of a model, or a preset's name instead of a configuration.
    """

    def __init__(self, model: nn.Module, config: MuGrokConfig):
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"MuonGrokfast takes the model itself, not {type(model).__name__}: its modules tell which matrices are "
                "hidden layers, which are tables or heads, and where attention logits are clipped"
            )
        if not isinstance(config, MuGrokConfig):
            raise TypeError(f"config is {type(config).__name__}: give MuGrokConfig.preset(name) or a MuGrokConfig")
        self.config = config
        split = split_parameters(model)
        adamw_lr = config.muon_lr if config.adamw_lr is None else config.adamw_lr
        groups = [
            {"name": "muon", "params": split.muon, "lr": config.muon_lr, "weight_decay": config.weight_decay},
            {"name": "adamw", "params": split.decayed, "lr": adamw_lr, "weight_decay": config.weight_decay},
            {"name": "adamw_no_decay", "params": split.spared, "lr": adamw_lr, "weight_decay": 0.0},
        ]
        # "fused" makes Optimizer.load_state_dict put AdamW's "step" on the parameter's device, as the kernel wants.
        super().__init__([{**group, "fused": True} for group in groups if group["params"]], {})
        self._transposed = split.transposed
        self._attention = {} if config.qk_clip_threshold is None else clippable_modules(model)
        self.last_clip: dict[str, list[int]] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient. Returns the closure's loss, or None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["name"] == "muon" else self._adamw)(group, parameters)
        if self._attention:
            self.last_clip = clip_heads(self._attention, self.config.qk_clip_threshold)
        return loss

    def __getstate__(self) -> dict:
        """What copies and pickles hold: torch's part, and what this optimizer knows of the model."""
        own = {name: vars(self)[name] for name in ("config", "_transposed", "_attention", "last_clip")}
        return {**super().__getstate__(), **own}

    def load_state_dict(self, state_dict: dict) -> None:
        """Take up a saved state; the given tensors are copied, because steps change the optimizer's own in place."""
        super().load_state_dict(copy.deepcopy(state_dict))

    def _muon(self, group: dict, parameters: list[Tensor]) -> None:
        stacks = defaultdict(list)
        for p in parameters:
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            stacks[p.shape, p.dtype, p in self._transposed].append(p)
        for (shape, _, transposed), stack in stacks.items():
            outputs, inputs = reversed(shape) if transposed else shape
            rate = group["lr"] * max(1.0, outputs / inputs) ** 0.5
            for batch in batches(stack):
                self._muon_batch(group, batch, rate)

    def _muon_batch(self, group: dict, matrices: list[Tensor], rate: float) -> None:
        """Matrices of one shape: filter and momentum, one batched orthogonal factor, then the weights."""
        first, config = matrices[0], self.config
        stack = torch.empty((len(matrices), *first.shape), dtype=product_dtype(first), device=first.device)
        collect(
            stack,
            [p.grad for p in matrices],
            [self._slow(p) for p in matrices],
            [self.state[p]["momentum"] for p in matrices],
            config.grokfast_alpha,
            config.grokfast_lambda,
            config.muon_momentum,
        )
        apply(matrices, orthogonalize(stack), 1 - group["lr"] * group["weight_decay"], -rate)

    def _adamw(self, group: dict, parameters: list[Tensor]) -> None:
        for p in parameters:
            if "exp_avg" not in self.state[p]:
                self.state[p].update(fresh_moments(p))
        for tile in tiles(parameters):
            chosen = [parameters[i] for i in tile]
            states = [self.state[p] for p in chosen]
            steps = [state["step"] for state in states]
            operands = [
                (p, p.grad, self._slow(p), state["exp_avg"], state["exp_avg_sq"])
                for p, state in zip(chosen, states, strict=True)
            ]
            for blocks in row_blocks(operands):
                weights, gradients, slow, first, second = (list(column) for column in zip(*blocks, strict=True))
                adamw_update(
                    weights,
                    self._filtered(gradients, slow),
                    first,
                    second,
                    steps,
                    lr=group["lr"],
                    betas=self.config.adamw_betas,
                    eps=self.config.adamw_eps,
                    weight_decay=group["weight_decay"],
                )
            torch._foreach_add_(steps, 1)

    def _slow(self, p: Tensor) -> Tensor:
        """Grokfast's h of a parameter. It starts at the first gradient; without a filter the gradient stands in."""
        if self.config.grokfast_lambda == 0:
            return p.grad
        state = self.state[p]
        if "slow" not in state:
            state["slow"] = p.grad.clone()
        return state["slow"]

    def _filtered(self, gradients: list[Tensor], slow: list[Tensor]) -> list[Tensor]:
        config = self.config
        if config.grokfast_lambda == 0:
            return gradients
        return amplify(gradients, slow, config.grokfast_alpha, config.grokfast_lambda)
