"""(a) One optimizer step on the 25M model: `MuonGrokfast` against the same mathematics from parts.

    parts        torch.optim.Muon + Grokfast-EMA as its paper's code has it (a Python loop) + torch.optim.AdamW
    fused parts  the same with AdamW(fused=True): a harder opponent, for information
    ours         MuonGrokfast, preset "cognate"

All three update the same shapes, split the same way, from the same gradients, in one process. The repeats are
interleaved, so a busy machine slows all of them; a figure is a median.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.optim import MuGrokConfig, MuonGrokfast


class GrokfastEMA:
    """The published loop: mu <- a mu + (1 - a) g, then g <- g + lambda mu, one parameter after the other."""

    def __init__(self, alpha: float, lam: float):
        self.alpha, self.lam, self.slow = alpha, lam, {}

    def __call__(self, parameters: list[Tensor]) -> None:
        for p in parameters:
            if p not in self.slow:
                self.slow[p] = p.grad.detach().clone()
            else:
                self.slow[p] = self.slow[p] * self.alpha + p.grad.detach() * (1 - self.alpha)
            p.grad = p.grad + self.slow[p] * self.lam


class Parts:
    """Grokfast, Muon and AdamW one after the other, over the parameter groups of a MuonGrokfast optimizer."""

    def __init__(self, groups: list[dict], config: MuGrokConfig, fused: bool):
        matrices = [g for g in groups if g["name"] == "muon"]
        others = [g for g in groups if g["name"] != "muon"]
        self.parameters = [p for g in groups for p in g["params"]]
        self.grokfast = GrokfastEMA(config.grokfast_alpha, config.grokfast_lambda)
        self.muon = torch.optim.Muon(
            [p for g in matrices for p in g["params"]], lr=config.muon_lr, weight_decay=config.weight_decay
        )
        self.adamw = torch.optim.AdamW(
            [{k: g[k] for k in ("params", "lr", "weight_decay")} for g in others],
            betas=config.adamw_betas,
            fused=fused or None,
        )

    def step(self) -> None:
        self.grokfast(self.parameters)
        self.muon.step()
        self.adamw.step()


def contestants(config: MuGrokConfig) -> dict[str, tuple[nn.Module, object]]:
    """A model of its own and an optimizer for each name, all from the same initial weights."""
    torch.manual_seed(0)
    model = CognateForCausalLM(CognateConfig.full())
    entries = {"ours": (model, MuonGrokfast(model, config))}
    for name, fused in (("parts", False), ("fused parts", True)):
        twin = CognateForCausalLM(CognateConfig.full())
        twin.load_state_dict(model.state_dict())
        entries[name] = (twin, Parts(MuonGrokfast(twin, config).param_groups, config, fused))
    return entries


def run(repeats: int = 15) -> list[dict]:
    """Rows {optimizer, parameters, median_ms, fastest_ms, parts_over_this}; the last is the speed-up over "parts"."""
    entries = contestants(MuGrokConfig.preset("cognate"))
    n_parameters = sum(p.numel() for p in next(iter(entries.values()))[0].parameters())
    times: dict[str, list[float]] = {name: [] for name in entries}
    for repeat in range(-2, repeats):
        for name, (model, optimizer) in entries.items():
            generator = torch.Generator().manual_seed(repeat + 2)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator) * 1e-3
            started = time.perf_counter()
            optimizer.step()
            if repeat >= 0:
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return [
        {
            "optimizer": name,
            "parameters": n_parameters,
            "median_ms": 1e3 * medians[name],
            "fastest_ms": 1e3 * min(times[name]),
            "parts_over_this": medians["parts"] / medians[name],
        }
        for name in entries
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = run(options.repeats)
    for row in rows:
        print("  ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
