"""(f) Merging three 25M models: `forgelib.merge` against mergekit's functions for state dicts.

Both merge the same weights, already in memory, in one process; the repeats are interleaved, so a busy machine slows
both, and a figure is a median. Linear and SLERP give the same child. mergekit's TIES trims each tensor where ours trims
the whole vector, and its DARE rescales by the L1 norm. The peak is what a merge adds to the process at most, child
included, parents not, as the kernel counts it, each in a process of its own.
"""

import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from mergekit.merge_methods.api import merge_state_dicts
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench.table import main
from forgelib.merge import dare, linear, slerp, ties

TITLE = "(f) merging three 25M models, against mergekit"
REPEATS = {"linear": 15, "slerp": 15, "dare": 5, "ties": 3}


def family() -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
    """Three Llama-shaped models and the trunk they moved away from; the head is tied, and named once."""
    config = LlamaConfig(
        vocab_size=28_000,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=6,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    trunk = dict(LlamaForCausalLM(config).state_dict())
    del trunk["lm_head.weight"]
    return [{name: t + 0.01 * torch.randn_like(t) for name, t in trunk.items()} for _ in range(3)], trunk


def contestants(models: list[dict], trunk: dict) -> dict[str, tuple[Callable, Callable]]:
    """For each technique our merge and mergekit's."""
    with_trunk = {"trunk": trunk, **dict(enumerate(models))}

    def mergekit(method: str, **parameters: float) -> dict[str, Tensor]:
        return merge_state_dicts(with_trunk, method, parameters=parameters, base="trunk")

    return {
        "linear": (lambda: linear(models), lambda: merge_state_dicts(models, "linear", parameters={"weight": 1.0})),
        "slerp": (
            lambda: slerp(models[0], models[1], 0.5),
            lambda: merge_state_dicts(dict(enumerate(models[:2])), "slerp", parameters={"t": 0.5}, base=0),
        ),
        "dare": (lambda: dare(models, trunk, 0.9, 0), lambda: mergekit("dare_linear", weight=1 / 3, density=0.1)),
        "ties": (lambda: ties(models, trunk, 0.2), lambda: mergekit("ties", weight=1.0, density=0.2)),
    }


def seconds(merge: Callable) -> float:
    """How long one merge takes, giving back its child included."""
    started = time.perf_counter()
    merge()
    return time.perf_counter() - started


def peak(merge: Callable) -> float:
    """Megabytes that one merge adds at most, in a process of its own; NaN where the kernel does not tell."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def measure() -> None:
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before must not be used again unseen
            Path("/proc/self/clear_refs").write_text("5")
            before = _kilobytes("VmRSS")
            child = merge()
            there.send((_kilobytes("VmHWM") - before) * 1024 / 1e6)
            del child
        except OSError:
            there.send(float("nan"))

    process = context.Process(target=measure)
    process.start()
    megabytes = here.recv()
    process.join()
    return megabytes


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def run(quick: bool = False) -> list[dict]:
    """A row for each technique: median milliseconds of both, how often ours fits into theirs, peaks in megabytes."""
    models, trunk = family()
    size = sum(t.numel() for t in trunk.values())
    rows = []
    for name, (ours, theirs) in contestants(models, trunk).items():
        peaks = peak(ours), peak(theirs)
        times: tuple[list[float], list[float]] = ([], [])
        for repeat in range(-1, 1 if quick else REPEATS[name]):
            for merge, taken in zip((ours, theirs), times, strict=True):
                if repeat >= 0:
                    taken.append(seconds(merge))
                elif not quick:
                    merge()
        medians = [statistics.median(taken) for taken in times]
        rows.append(
            {
                "technique": name,
                "parameters": size,
                "median ms": 1e3 * medians[0],
                "mergekit ms": 1e3 * medians[1],
                "speed-up over mergekit": medians[1] / medians[0],
                "peak MB": peaks[0],
                "mergekit peak MB": peaks[1],
            }
        )
    return rows


if __name__ == "__main__":
    main(TITLE, run)
