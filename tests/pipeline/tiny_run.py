"""A tiny training that the tests start, kill, stop, starve and continue. It draws from every generator there is."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from forgelib.core.ema import WeightAverage
from forgelib.core.loop import Checkpointer, Control, ResumableLoop
from forgelib.core.parallel import share_step
from forgelib.core.rng import seed_everything, stream
from forgelib.core.tracking import Tracker

ROWS = 4


class Batches:
    """Random rows [ROWS, 8] from a generator of its own, whose state is a part of the run.

    With several processes each gets its share of the common batch.
    """

    def __init__(self, rank: int = 0, world_size: int = 1):
        self.rank, self.share = rank, ROWS // world_size
        self.generator = torch.Generator().manual_seed(stream(0, "batches"))

    def next_batch(self) -> torch.Tensor:
        return torch.randn(ROWS, 8, generator=self.generator)[self.rank * self.share :][: self.share]

    def state_dict(self) -> dict:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        self.generator.set_state(state["generator"])


def build(width: int = 16, dropout: float = 0.1) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Two layers and AdamW, always the same."""
    torch.set_num_threads(1)
    seed_everything(0)
    layers = torch.nn.Linear(8, width), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(width, 1)
    model = torch.nn.Sequential(*layers)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def train(folder: Path, total_steps: int, every_steps: int = 7, pace: float = 0.0, width: int = 16) -> Iterator[dict]:
    """One record a step, as the package's procedures give them.

    pace: seconds slept in a step. The final weights and their average go to final.safetensors.
    """
    model, optimizer = build(width)
    average, batches = WeightAverage(model, 0.9), Batches()
    parts = {"model": model, "optimizer": optimizer, "average": average, "batches": batches}
    with ResumableLoop(parts, total_steps, Checkpointer(folder / "checkpoints", every_steps), Control(folder)) as loop:
        for step in loop:
            rows = batches.next_batch() + 0.1 * random.random() + 0.1 * float(np.random.rand())
            loss = (model(rows) - rows.sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            average.update(model)
            loop.extra["rows"] = loop.extra.get("rows", 0) + len(rows)
            time.sleep(pace)
            yield {"step": step, "loss": float(loss.detach()), "rows": loop.extra["rows"]}
    if not loop.stopped:
        final = model.state_dict() | {f"average.{name}": value for name, value in average.average.items()}
        save_file(final, folder / "final.safetensors")


def run(folder: Path, total_steps: int, every_steps: int = 7, pace: float = 0.0, width: int = 16) -> None:
    """Train with a journal."""
    for _ in Tracker(folder, run_name="tiny").follow(train(folder, total_steps, every_steps, pace, width)):
        pass


class Watch(torch.nn.Module):
    """Keeps what a layer may measure on its rows: a mean in a buffer, and the largest values as attention does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.max_logits = None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.mean.copy_(rows.mean(0))
        self.max_logits = rows.amax(0)
        return rows


def run_rank(folder: Path, total_steps: int, rank: int, world_size: int, port: int) -> None:
    """One of several processes, in the surroundings that a launcher (accelerate, torchrun) makes for it."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update({name: str(value) for name, value in (place | meeting).items()})
    run_shared(folder, total_steps)


def run_shared(folder: Path, total_steps: int) -> None:
    """The same training, without noise, over as many processes as were started."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    layers, optimizer = build(dropout=0.0)
    watch = Watch()
    model = torch.nn.Sequential(watch, *layers)
    batches = Batches(accelerator.process_index, accelerator.num_processes)
    parts = {"model": model, "optimizer": optimizer, "batches": batches}
    with ResumableLoop(parts, total_steps, Checkpointer(folder, 3), Control(folder), accelerator) as loop:
        for _ in loop:
            rows = batches.next_batch()
            (model(rows) - rows.sum(1, keepdim=True)).square().mean().backward()
            share_step(model, accelerator)
            optimizer.step()
            optimizer.zero_grad()
    moments = {f"moment{i}": entry["exp_avg"] for i, entry in enumerate(optimizer.state.values())}
    save_file(
        model.state_dict() | moments | {"largest": watch.max_logits},
        folder / f"final-{accelerator.process_index}.safetensors",
    )
