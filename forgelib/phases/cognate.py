"""Phase 1: pre-training a Cognate model, the shared trunk and then each specialist.

    for record in pretrain(model, batches, config, checkpointer=..., control=...):
        ...

yields one small record per optimizer step and may be left at any step: it continues from its last checkpoint.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from forgelib.core.ema import WeightAverage
from forgelib.core.health import LossMonitor, NonFiniteError, first_nonfinite
from forgelib.core.loop import Checkpointer, Control, ResumableLoop
from forgelib.core.parallel import share_step
from forgelib.data.cursor import BatchCursor
from forgelib.optim import MuGrokConfig, MuonGrokfast


@dataclass(frozen=True)
class Stage:
    """One stretch of the curriculum: `steps` optimizer steps on sequences of `seq_len` tokens from `pools`.

    pools maps a category to its packed sequences [N, seq_len]; max_cycles is the recursion depth trained here.
    """

    name: str
    steps: int
    seq_len: int
    batch_size: int
    max_cycles: int
    weights: dict[str, float]
    pools: dict[str, torch.Tensor] = field(repr=False)


@dataclass(frozen=True)
class PretrainConfig:
    """How a model is pre-trained. Learning rates rise over `warmup_share` of the steps and then fall linearly to zero.

    Decaying to zero matters for Phase 2: parents that still bounce at a high rate are improved by mere averaging,
    and a merge would look like progress that it is not.
    """

    stages: tuple[Stage, ...]
    seed: int
    muon_lr: float
    adamw_lr: float
    warmup_share: float = 0.05
    ema_decay: float = 0.98

    @property
    def total_steps(self) -> int:
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> int:
        """Index of the stage that `step` (from 0) belongs to."""
        for i, stage in enumerate(self.stages):
            if step < stage.steps:
                return i
            step -= stage.steps
        return len(self.stages) - 1

    def rate_scale(self, step: int) -> float:
        """Learning-rate factor in (0, 1] at `step`, trapezoid without a plateau."""
        warmup = max(1, round(self.warmup_share * self.total_steps))
        if step < warmup:
            return (step + 1) / warmup
        return (self.total_steps - step) / max(1, self.total_steps - warmup)


def pretrain(
    model: nn.Module,
    config: PretrainConfig,
    *,
    checkpointer: Checkpointer,
    control: Control | None = None,
    accelerator=None,
) -> Iterator[dict]:
    """Train `model` in place over the stages; at the end the model holds the moving average of its weights.

    Yields a record a step: step, stage, loss (nats per token, deeply supervised), cycle_loss_<n> (cross-entropy
    after each cycle), act_loss, gate_entropy, memory_share, grad_norm, rate_scale, clipped_heads, tokens and
    tokens_per_second.
    Raises NonFiniteError naming the step and the first broken layer; nothing of a broken step is kept.
    """
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate", muon_lr=config.muon_lr, adamw_lr=config.adamw_lr))
    base_rates = [group["lr"] for group in optimizer.param_groups]
    average = WeightAverage(model, config.ema_decay)
    first = config.stages[0]
    cursor = BatchCursor(first.pools, first.weights, first.batch_size, config.seed)
    monitor = LossMonitor()
    parts = {"model": model, "optimizer": optimizer, "average": average, "cursor": cursor, "monitor": monitor}
    loop = ResumableLoop(parts, config.total_steps, checkpointer, control, accelerator)
    model.train()
    with loop:
        current = None
        for step in loop:
            if config.stage_at(step) != current:
                current = config.stage_at(step)
                _enter_stage(model, cursor, config.stages[current])
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * config.rate_scale(step)
            record = _train_step(model, optimizer, cursor, step, accelerator)
            average.update(model)
            monitor.update(step, record["loss"])
            record |= {"stage": config.stages[current].name, "rate_scale": config.rate_scale(step)}
            yield record
    if not loop.stopped:
        average.copy_to(model)


def _enter_stage(model: nn.Module, cursor: BatchCursor, stage: Stage) -> None:
    model.config.max_cycles = stage.max_cycles
    cursor.set_pools(stage.pools, stage.weights, stage.batch_size)


def _train_step(model: nn.Module, optimizer: MuonGrokfast, cursor: BatchCursor, step: int, accelerator) -> dict:
    started = time.perf_counter()
    input_ids = cursor.next_batch().to(next(model.parameters()).device)

    def forward():
        return model(input_ids=input_ids, labels=input_ids, logits_to_keep=1)

    output = forward()
    output.loss.backward()
    share_step(model, accelerator)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    grad_norm = float(torch.stack(torch._foreach_norm(gradients)).norm())
    loss = float(output.loss.detach())
    if not (torch.isfinite(torch.tensor([loss, grad_norm])).all()):
        raise NonFiniteError(step, first_nonfinite(model, forward) or "the gradients")
    optimizer.step()
    optimizer.zero_grad()
    record = {
        "step": step,
        "loss": loss,
        "act_loss": float(output.act_loss.detach()),
        "grad_norm": grad_norm,
        "clipped_heads": sum(len(heads) for heads in optimizer.last_clip.values()),
        "tokens": input_ids.numel(),
        "tokens_per_second": input_ids.numel() / (time.perf_counter() - started),
    }
    if output.gate_entropy is not None:
        record["gate_entropy"] = float(output.gate_entropy.detach())
        record["memory_share"] = float(output.memory_share.mean())
    for cycle, cycle_loss in enumerate(output.cycle_losses.tolist(), start=1):
        record[f"cycle_loss_{cycle}"] = cycle_loss
    return record
