"""(c) A byte-level language model of 0.87M parameters: after how many steps is AdamW's final loss reached?

Both optimizers try four rates on seed 0, chosen beforehand, with the same weight decay and the same schedule (20 steps
warm-up, then straight to zero at the last of 500 steps); the rate that ends lowest is run on two more seeds. AdamW on
MuonGrokfast's embeddings, head and norms stays at 3e-3, not tuned. A run that is still far from its end carries a high
rate, so the crossing is, if anything, late.
"""

import gzip
import json
import statistics
import sysconfig
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.table import main
from bench.tiny_gpt import TinyGPT
from forgelib.core.paths import datasets_mirror
from forgelib.optim import MuGrokConfig, MuonGrokfast

TITLE = "(c) byte-level LM, 0.87M parameters: steps to AdamW's final loss"
LENGTH, BATCH, STEPS, WARMUP, LOOK_EVERY = 128, 8, 500, 20, 10
SEEDS, DECAY = (0, 1, 2), 0.05
BYTES = 4_000_000


def text() -> tuple[bytes, str]:
    """The first 4 MB of WikiText's rows below FORGE_DATASETS or, without them, of the standard library's source."""
    mirror = datasets_mirror()
    rows = None if mirror is None else mirror / "wikitext-2-raw-v1" / "train.jsonl.gz"
    if rows is not None and rows.is_file():
        with gzip.open(rows, "rt", encoding="utf-8") as lines:
            words = "".join(json.loads(line)["text"] for line in lines)
        return words.encode()[:BYTES], "WikiText-2 raw, train"
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return b"".join(source.read_bytes() for source in sources)[:BYTES], "source of Python's standard library"


class Windows:
    """Random windows of LENGTH + 1 bytes; the last tenth of the text is for validation only."""

    def __init__(self, corpus: bytes, seed: int):
        data = torch.frombuffer(bytearray(corpus), dtype=torch.uint8).long()
        cut = len(data) * 9 // 10
        self.data, self.dice = data[:cut], torch.Generator().manual_seed(seed)
        starts = torch.linspace(cut, len(data) - LENGTH - 1, 32).long()
        self.validation = data[starts[:, None] + torch.arange(LENGTH + 1)]

    def batch(self) -> Tensor:
        starts = torch.randint(len(self.data) - LENGTH, (BATCH, 1), generator=self.dice)
        return self.data[starts + torch.arange(LENGTH + 1)]


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross-entropy in nats a byte."""
    return F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def train(make: Callable[[nn.Module], torch.optim.Optimizer], corpus: bytes, seed: int, steps: int) -> dict[int, float]:
    """Validation loss by the number of steps done."""
    windows = Windows(corpus, seed)
    torch.manual_seed(seed)
    model = TinyGPT(256, LENGTH, width=128, layers=4, heads=4)
    optimizer, curve = make(model), {}
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(steps):
        scale = min((step + 1) / WARMUP, (steps - step) / max(1, steps - WARMUP))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * min(1.0, scale)
        optimizer.zero_grad()
        loss_of(model, windows.batch()).backward()
        optimizer.step()
        if (step + 1) % LOOK_EVERY == 0 or step + 1 == steps:
            with torch.no_grad():
                curve[step + 1] = float(loss_of(model.eval(), windows.validation))
            model.train()
    return curve


def adamw(lr: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=DECAY)


def muon_grokfast(lr: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    config = MuGrokConfig.preset("cognate", muon_lr=lr, adamw_lr=3e-3, weight_decay=DECAY)
    return lambda model: MuonGrokfast(model, config)


CANDIDATES = {
    "AdamW": (adamw, (1e-3, 3e-3, 6e-3, 1e-2)),
    "MuonGrokfast": (muon_grokfast, (3e-3, 1e-2, 2e-2, 4e-2)),
}


def first_below(curve: dict[int, float], goal: float) -> float:
    return min((step for step, loss in curve.items() if loss <= goal), default=float("inf"))


def best_of_four(name: str, corpus: bytes, steps: int, rates: int) -> tuple[float, dict[int, float], list[dict]]:
    """The rate with the lowest final loss on seed 0, its curve, and a row for each rate tried."""
    make, tried = CANDIDATES[name]
    curves = {lr: train(make(lr), corpus, SEEDS[0], steps) for lr in tried[:rates]}
    best = min(curves, key=lambda lr: curves[lr][steps])
    rows = [
        {"optimizer": name, "rate": lr, "seed": SEEDS[0], "chosen": "yes" * (lr == best), "final loss": curve[steps]}
        for lr, curve in curves.items()
    ]
    return best, curves[best], rows


def run(quick: bool = False) -> list[dict]:
    """Rows of the rates tried, then one a seed: AdamW's and MuonGrokfast's loss, the crossing, its share of AdamW's."""
    corpus, origin = text()
    steps, rates, seeds = (20, 1, SEEDS[:1]) if quick else (STEPS, 4, SEEDS)
    chosen, rows = {}, []
    for name in CANDIDATES:
        best, curve, tried = best_of_four(name, corpus, steps, rates)
        chosen[name] = (best, {SEEDS[0]: curve})
        rows += tried
    shares = []
    for seed in seeds:
        for name, (best, curves) in chosen.items():
            if seed not in curves:
                curves[seed] = train(CANDIDATES[name][0](best), corpus, seed, steps)
        goal, curve = chosen["AdamW"][1][seed][steps], chosen["MuonGrokfast"][1][seed]
        shares.append(first_below(curve, goal) / steps)
        rows.append(
            {"optimizer": "MuonGrokfast to AdamW's loss", "rate": chosen["MuonGrokfast"][0], "seed": seed}
            | {"final loss": curve[steps], "AdamW's": goal, "steps": first_below(curve, goal), "share": shares[-1]}
        )
    rows.append({"optimizer": f"median, on {origin}", "share": statistics.median(shares)})
    return rows


if __name__ == "__main__":
    main(TITLE, run)
