"""(a) One optimizer step on the 25M model: `MuonGrokfast` against the same mathematics from parts.

    parts        torch.optim.Muon + Grokfast-EMA as its paper's code has it (a Python loop) + torch.optim.AdamW
    fused parts  the same with AdamW(fused=True): a harder opponent, for information
    ours         MuonGrokfast, preset "cognate"

All three update the same shapes, split the same way, from the same gradients, in one process. The repeats are
interleaved, so a busy machine slows all of them; a figure is a median.
"""

import statistics
import time

import torch
from torch import Tensor, nn

from bench.table import main
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.optim import MuGrokConfig, MuonGrokfast

TITLE = "(a) an optimizer step on the 25M model, against torch.optim.Muon + Grokfast + torch.optim.AdamW"


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


def run(quick: bool = False) -> list[dict]:
    """A row for each: median and fastest step in milliseconds, and how often it fits into the median of "parts"."""
    repeats = 2 if quick else 15
    entries = contestants(MuGrokConfig.preset("cognate"))
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
            "parameters": sum(p.numel() for p in model.parameters()),
            "median ms": 1e3 * medians[name],
            "fastest ms": 1e3 * min(times[name]),
            "speed-up over parts": medians["parts"] / medians[name],
        }
        for name, (model, _) in entries.items()
    ]


if __name__ == "__main__":
    main(TITLE, run)
