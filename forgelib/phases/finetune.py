"""Phase 4: a ternary model is trained straight-through until it does again what it did in full precision.

    for record in finetune(model, shown, config, teacher=..., checkpointer=..., control=...):
        ...

The weights stay in full precision underneath; every forward pass rounds them, and the gradient passes the rounding as
if it were not there (straight-through, 1308.3432; BitNet b1.58, 2402.17764). Rounded all at once a small model knows
nothing any more, so the rounding is blended in: `share` rises from 0 to 1 over the warm-up. Asked for, the logits of
the full-precision parent are a second target (BitDistill, 2510.13998).

`full_precision` is the control: the same rows, steps and rates without any rounding. What ternary weights cost is the
distance to it, not to the model before, which was not trained as long.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgelib.core.health import NonFiniteError, first_nonfinite
from forgelib.core.loop import Checkpointer, Control, ResumableLoop, RunStopped
from forgelib.core.rng import stream
from forgelib.optim import MuGrokConfig, MuonGrokfast
from forgelib.optim.schedule import warmup_then_decay
from forgelib.phases.bake import IGNORED, Encoded, epoch_order, padded
from forgelib.quant import TernaryLinear

#: Rows of an epoch, as many in each: (input_ids, labels), labels IGNORED where a token carries no loss.
Shown = Callable[[int], Sequence[Encoded]]


@dataclass(frozen=True)
class FinetuneConfig:
    """How a ternary model is fine-tuned. Learning rates rise over `warmup_share` of the steps and fall to zero.

    rounding_warmup: share of the steps over which the rounding is blended in. distillation: weight of the KL to the
    parent, which needs a `teacher`; the loss on the labels has weight 1. looks: how often on the way the quality is
    measured, where something to measure it with is given.
    """

    seed: int
    epochs: int = 2
    batch_size: int = 8
    muon_lr: float = 1e-3
    adamw_lr: float = 1e-5
    grokfast_lambda: float = 2.0
    warmup_share: float = 0.05
    rounding_warmup: float = 0.2
    distillation: float = 0.0
    looks: int = 2

    def __post_init__(self):
        if self.epochs < 1 or self.batch_size < 1 or self.looks < 1:
            raise ValueError(f"epochs, batch_size and looks must be at least 1: {self}")
        if not 0 <= self.rounding_warmup <= 1 or not self.distillation >= 0:
            raise ValueError(f"rounding_warmup must be from 0 to 1, distillation at least 0: {self}")


def finetune(
    model: nn.Module,
    shown: Shown,
    config: FinetuneConfig,
    *,
    pad: int,
    teacher: nn.Module | None = None,
    measure: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpointer: Checkpointer,
    control: Control | None = None,
) -> Iterator[dict]:
    """Train the TernaryLinear layers of `model`, and what is between them, in place on `shown`.

    Args: shown: epoch -> its rows; pad: the token that fills a batch; teacher: the parent in full precision, frozen;
    measure: quality of a model by name, asked at share 1, as inference rounds.
    Yields a record a step: step, epoch, loss (nats a labelled token), kl (nats, where there is a teacher),
    learning_rate, rounding_share, grad_norm, tokens, tokens_per_second, sparsity (at a look), and what `measure` found.
    Raises ValueError without a TernaryLinear, without rows, or with distillation and no teacher; NonFiniteError naming
    the step and the first broken layer; RunStopped when `control` asked for it.
    """
    if not any(isinstance(module, TernaryLinear) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} has no TernaryLinear: convert it first (forgelib.quant.convert)")
    yield from _train(model, shown, config, pad, teacher, measure, checkpointer, control)


def full_precision(
    model: nn.Module,
    shown: Shown,
    config: FinetuneConfig,
    *,
    pad: int,
    measure: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpointer: Checkpointer,
    control: Control | None = None,
) -> Iterator[dict]:
    """The control at equal steps: the same training of a model without ternary layers, on its labels alone.

    Yields and raises as `finetune`; ValueError for a model that has a TernaryLinear.
    """
    if any(isinstance(module, TernaryLinear) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} has ternary layers: the control is the model before conversion")
    yield from _train(model, shown, config, pad, None, measure, checkpointer, control)


def rounding_share(step: int, steps: int, warmup: float) -> float:
    """How much of the rounding is done at `step` (from 0) of `steps`: up in a line over `warmup` of them, then 1."""
    rising = round(warmup * steps)
    return 1.0 if step >= rising else (step + 1) / (rising + 1)


def _train(
    model: nn.Module,
    shown: Shown,
    config: FinetuneConfig,
    pad: int,
    teacher: nn.Module | None,
    measure: Callable[[nn.Module], dict[str, float]] | None,
    checkpointer: Checkpointer,
    control: Control | None,
) -> Iterator[dict]:
    per_epoch = -(-len(shown(0)) // config.batch_size)
    if not per_epoch:
        raise ValueError("fine-tuning needs rows: got 0")
    if config.distillation and teacher is None:
        raise ValueError(f"distillation = {config.distillation} needs a teacher: the parent in full precision")
    layers = [module for module in model.modules() if isinstance(module, TernaryLinear)]
    steps, every = config.epochs * per_epoch, max(1, config.epochs * per_epoch // config.looks)
    rates = {"muon_lr": config.muon_lr, "adamw_lr": config.adamw_lr, "grokfast_lambda": config.grokfast_lambda}
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("bitnet", **rates))
    base_rates = [group["lr"] for group in optimizer.param_groups]
    loop = ResumableLoop({"model": model, "optimizer": optimizer}, steps, checkpointer, control)
    torch.manual_seed(stream(config.seed, "dropout"))  # a checkpoint, where there is one, restores its own
    model.train()
    with loop:
        for step in loop:
            epoch, place = divmod(step, per_epoch)
            scale = warmup_then_decay(step, steps, config.warmup_share)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * scale
            share = rounding_share(step, steps, config.rounding_warmup)
            _set_share(layers, share)
            if place == 0 or step == loop.start_step:
                rows = shown(epoch)
                batches = epoch_order(rows, config, epoch)
            batch = padded([rows[i] for i in batches[place]], pad)
            record = _train_step(model, optimizer, *batch, step, teacher if config.distillation else None, config)
            record |= {"epoch": (step + 1) / per_epoch, "learning_rate": config.muon_lr * scale}
            record["rounding_share"] = share if layers else 0.0
            if (step + 1) % every == 0 or step + 1 == steps:
                record |= _look(model, layers, measure)
            yield record
    _set_share(layers, 1.0)
    if loop.stopped:
        raise RunStopped(loop.done, steps)
    model.eval()


def _set_share(layers: list[TernaryLinear], share: float) -> None:
    for layer in layers:
        layer.share = share


def _look(model: nn.Module, layers: list[TernaryLinear], measure: Callable[[nn.Module], dict] | None) -> dict:
    """Sparsity and quality of the model as it would be used if training ended here."""
    _set_share(layers, 1.0)
    found = {"sparsity": sparsity(layers)} if layers else {}
    if measure is not None:
        model.eval()
        found |= measure(model)
        model.train()
    return found


def sparsity(layers: Sequence[nn.Module]) -> float:
    """Share of zeros among all weights of these ternary layers."""
    sizes = [layer.out_features * layer.in_features for layer in layers]
    return float(np.average([layer.sparsity() for layer in layers], weights=sizes))


def _train_step(
    model: nn.Module,
    optimizer: MuonGrokfast,
    input_ids: Tensor,
    labels: Tensor,
    step: int,
    teacher: nn.Module | None,
    config: FinetuneConfig,
) -> dict:
    started, device = time.perf_counter(), next(model.parameters()).device
    input_ids, labels = input_ids.to(device), labels.to(device)

    def forward():
        return model(input_ids=input_ids, labels=labels)

    output = forward()
    total, record = output.loss, {"step": step, "loss": float(output.loss.detach())}
    if teacher is not None:
        with torch.no_grad():
            target = teacher(input_ids=input_ids).logits
        kl = kl_to(target, output.logits, labels)
        total, record["kl"] = total + config.distillation * kl, float(kl.detach())
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    record["grad_norm"] = float(torch.stack(torch._foreach_norm(gradients)).norm())
    if not np.isfinite([value for value in record.values()]).all():
        raise NonFiniteError(step, first_nonfinite(model, forward) or "the gradients")
    optimizer.step()
    optimizer.zero_grad()
    seconds, tokens = time.perf_counter() - started, input_ids.numel()
    return record | {"tokens": tokens, "tokens_per_second": tokens / seconds}


def kl_to(target: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """KL(parent || model) in nats, mean over the positions [B, T] that a label follows; logits are [B, T, V]."""
    told = labels[:, 1:] != IGNORED
    parent, own = (F.log_softmax(one[:, :-1][told].float(), dim=-1) for one in (target, logits))
    return F.kl_div(own, parent, log_target=True, reduction="batchmean")
