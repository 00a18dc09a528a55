"""Phase 1: pre-training a Cognate model, the shared trunk and then each specialist.

    for record in pretrain(model, batches, config, checkpointer=..., control=...):
        ...

yields one small record per optimizer step and may be left at any step: it continues from its last checkpoint.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from forgelib.core.ema import WeightAverage
from forgelib.core.health import LossMonitor, NonFiniteError, first_nonfinite
from forgelib.core.loop import Checkpointer, Control, ResumableLoop, RunStopped
from forgelib.core.parallel import mean_over_processes, share_step
from forgelib.core.rng import stream
from forgelib.data.cursor import BatchCursor
from forgelib.optim import MuGrokConfig, MuonGrokfast
from forgelib.optim.schedule import warmup_then_decay
from forgelib.phases.curriculum import Stage


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
        return warmup_then_decay(step, self.total_steps, self.warmup_share)


class CurriculumBatches:
    """Batches of one stage after the other; saved and restored with the run.

    With several processes each reads its own rows of a common batch of `batch_size` rows.
    """

    def __init__(self, stages: tuple[Stage, ...], seed: int, accelerator=None):
        self.stages, self.seed = stages, seed
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.world_size = 1 if accelerator is None else accelerator.num_processes
        self.enter(0)

    def enter(self, stage: int) -> None:
        """Begin a stage at its first batch."""
        self.stage, chosen = stage, self.stages[stage]
        if chosen.batch_size % self.world_size:
            raise ValueError(f"batch_size = {chosen.batch_size}: must be a multiple of the {self.world_size} processes")
        self.cursor = BatchCursor(
            chosen.pools,
            chosen.weights,
            chosen.batch_size // self.world_size,
            stream(self.seed, "batches", stage),
            rank=self.rank,
            world_size=self.world_size,
        )

    def next_batch(self) -> torch.Tensor:
        """input_ids [rows of this process, seq_len]."""
        return self.cursor.next_batch()

    def state_dict(self) -> dict:
        return {"stage": self.stage, "cursor": self.cursor.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        self.enter(int(state["stage"]))
        self.cursor.load_state_dict(state["cursor"])


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
    after each cycle), act_loss, gate_entropy, memory_share, grad_norm, rate_scale, clipped_heads, tokens,
    tokens_per_second and plateau (no better loss for 200 steps of the stage).
    Raises NonFiniteError naming the step and the first broken layer (nothing of a broken step is kept), DivergedError,
    and RunStopped when `control` asked for it.
    """
    rates = {"muon_lr": config.muon_lr, "adamw_lr": config.adamw_lr}
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate", **rates))
    base_rates = [group["lr"] for group in optimizer.param_groups]
    average = WeightAverage(model, config.ema_decay)
    batches = CurriculumBatches(config.stages, config.seed, accelerator)
    monitor = LossMonitor()
    parts = {"model": model, "optimizer": optimizer, "average": average, "batches": batches, "monitor": monitor}
    loop = ResumableLoop(parts, config.total_steps, checkpointer, control, accelerator)
    model.train()
    with loop:
        for step in loop:
            if config.stage_at(step) != batches.stage:
                batches.enter(config.stage_at(step))
                monitor.restart()
            stage = config.stages[batches.stage]
            model.config.max_cycles = stage.max_cycles
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * config.rate_scale(step)
            record = _train_step(model, optimizer, batches.next_batch(), step, accelerator)
            average.update(model)
            monitor.update(step, record["loss"])
            record |= {"stage": stage.name, "rate_scale": config.rate_scale(step), "plateau": monitor.plateau}
            yield record
    if loop.stopped:
        raise RunStopped(loop.done, config.total_steps)
    average.copy_to(model)


def _train_step(model: nn.Module, optimizer: MuonGrokfast, input_ids: torch.Tensor, step: int, accelerator) -> dict:
    started = time.perf_counter()
    input_ids = input_ids.to(next(model.parameters()).device)

    def forward():
        return model(input_ids=input_ids, labels=input_ids, logits_to_keep=1)

    output = forward()
    output.loss.backward()
    share_step(model, accelerator)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    grad_norm = float(torch.stack(torch._foreach_norm(gradients)).norm())
    loss = float(mean_over_processes(output.loss.detach(), accelerator))
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
