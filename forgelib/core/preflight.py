"""Preflight: what a training will need in memory and on disk, said before it starts and compared afterwards."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

FLOAT = 4
#: A Python process with torch and transformers loaded, before any model, in bytes (measured 0.45 to 0.6 GB).
PROCESS_BYTES = 550_000_000
#: Activations kept for the backward pass, per token, layer application and unit of width; measured on the laptop model.
ACTIVATIONS_PER_UNIT = 46


class DoesNotFit(RuntimeError):
    """A training needs more memory or disk than there is; the text says how much and what to change."""


@dataclass(frozen=True)
class Forecast:
    """Bytes that a training is expected to take; `parts` names what they are made of."""

    parts: dict[str, int]
    disk_bytes: int

    @property
    def memory_bytes(self) -> int:
        """On the device where the model lives."""
        return sum(self.parts.values())

    def rows(self) -> list[dict]:
        """A table for people, in MB."""
        rows = [{"what": name, "MB": round(size / 1e6, 1)} for name, size in self.parts.items()]
        total = [{"what": "memory in all", "MB": round(self.memory_bytes / 1e6, 1)}]
        return rows + total + [{"what": "disk for checkpoints", "MB": round(self.disk_bytes / 1e6, 1)}]


def forecast(
    *,
    n_parameters: int,
    tokens_per_step: int,
    d_model: int,
    layer_applications: int,
    vocab_size: int,
    logits_at_once: int = 2**24,
    optimizer_states: int = 3,
    checkpoints: int = 2,
) -> Forecast:
    """Memory and disk of a float32 training.

    Args:
        layer_applications: how often a layer runs per token: backbone layers plus cycles x calls of the recursion net.
        optimizer_states: tensors as large as the model that the optimizer and the weight average keep.
        logits_at_once: largest number of logits that exist at one time.
    """
    logits = min(tokens_per_step * vocab_size, logits_at_once)
    parts = {
        "process and libraries": PROCESS_BYTES,
        "weights and gradients": 2 * FLOAT * n_parameters,
        "optimizer and weight average": optimizer_states * FLOAT * n_parameters,
        "activations": FLOAT * tokens_per_step * d_model * layer_applications * ACTIVATIONS_PER_UNIT,
        "logits and their gradient": 3 * FLOAT * logits,
    }
    per_checkpoint = FLOAT * n_parameters * (1 + optimizer_states)
    return Forecast(parts, (checkpoints + 1) * per_checkpoint + FLOAT * n_parameters)


def refusals(needed: Forecast, run_dir: Path, device: str = "cpu") -> list[str]:
    """Why this cannot work here, one sentence each with what to change; empty when it can."""
    problems = []
    folder = next(p for p in (Path(run_dir), *Path(run_dir).parents) if p.exists())
    free = shutil.disk_usage(folder).free
    if free < needed.disk_bytes:
        problems.append(
            f"{folder} has {free / 1e9:.1f} GB free, the checkpoints need {needed.disk_bytes / 1e9:.1f} GB: "
            "free some space or point FORGE_RUNS elsewhere"
        )
    available = _available_memory(device)
    if available < needed.memory_bytes:
        problems.append(
            f"{device} has {available / 1e9:.1f} GB free, the training needs about {needed.memory_bytes / 1e9:.1f} GB: "
            "lower tokens_per_step or choose a smaller profile"
        )
    return problems


def require(needed: Forecast, run_dir: Path, device: str = "cpu") -> None:
    """Raises DoesNotFit, before any work, when `refusals` finds a reason."""
    if problems := refusals(needed, run_dir, device):
        raise DoesNotFit("; ".join(problems))


def _available_memory(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


class Meter:
    """Measures what a block really took: peak memory, disk, seconds.

        with Meter(run_dir) as meter: ...
        meter.compare(forecast)

    On the CPU the peak is the process's own high-water mark since its start.
    """

    def __init__(self, run_dir: Path, device: str = "cpu"):
        self.run_dir, self.device = Path(run_dir), device
        self.peak_bytes = self.disk_bytes = 0
        self.seconds = 0.0

    def __enter__(self) -> "Meter":
        self._started = time.perf_counter()
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
        return self

    def __exit__(self, *error) -> None:
        self.seconds = time.perf_counter() - self._started
        self.peak_bytes = peak_memory(self.device)
        self.disk_bytes = sum(p.stat().st_size for p in self.run_dir.rglob("*") if p.is_file())

    def compare(self, expected: Forecast) -> list[dict]:
        """Forecast beside measurement, in MB."""
        pairs = (("memory", expected.memory_bytes, self.peak_bytes), ("disk", expected.disk_bytes, self.disk_bytes))
        return [
            {"what": name, "forecast MB": round(f / 1e6, 1), "measured MB": round(m / 1e6, 1)} for name, f, m in pairs
        ]


def peak_memory(device: str = "cpu") -> int:
    """Largest memory of this process so far, in bytes (resident on the CPU, allocated on a GPU)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():  # Linux: of this program alone; getrusage also knows the parent's memory before exec
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
