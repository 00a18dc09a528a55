"""(b) Tokens per second of a training step, with and without the long-term memory, with 1 and 3 recursion cycles.

A step is forward, backward and MuonGrokfast's update. All variants of a size take turns in one process; a ratio is the
median over the turns of time without the part / time with it, so 0.8 means that the part costs a fifth of the speed.
"""

import time

import torch

from bench.table import main
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.optim import MuGrokConfig, MuonGrokfast

TITLE = "(b) tokens per second of a training step, with and without memory, 1 and 3 recursion cycles"
#: The laptop profile of 11_cognate_train and the full model; batch and length of a step.
SIZES = {
    "laptop": (
        CognateConfig(vocab_size=1024, d_model=128, n_layers=4, window=32, memory_layers=[1, 3], recursion_layers=1),
        (8, 128),
    ),
    "25M": (CognateConfig.full(), (2, 256)),
}
#: name -> (memory, recursion cycles); the first is the model as it is trained.
VARIANTS = {
    "memory, 3 cycles": (True, 3),
    "no memory, 3 cycles": (False, 3),
    "memory, 1 cycle": (True, 1),
    "no memory, 1 cycle": (False, 1),
}


class Trainer:
    """A model, its optimizer and a fixed batch of random tokens."""

    def __init__(self, config: CognateConfig, batch: tuple[int, int], memory: bool, cycles: int):
        fields = config.to_dict() | {"max_cycles": cycles}
        if not memory:
            fields["memory_layers"] = []
        torch.manual_seed(0)
        self.model = CognateForCausalLM(CognateConfig.from_dict(fields)).train()
        self.optimizer = MuonGrokfast(self.model, MuGrokConfig.preset("cognate"))
        self.input_ids = torch.randint(config.vocab_size, batch)

    def step(self) -> float:
        """Seconds of one training step."""
        started = time.perf_counter()
        self.model(input_ids=self.input_ids, labels=self.input_ids, logits_to_keep=1).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - started


def measure(size: str, turns: int) -> list[dict]:
    """A row for each variant of one size."""
    config, batch = SIZES[size]
    trainers = {name: Trainer(config, batch, *variant) for name, variant in VARIANTS.items()}
    for trainer in trainers.values():
        trainer.step()
    seconds = {name: [] for name in trainers}
    for _ in range(turns):
        for name, trainer in trainers.items():
            seconds[name].append(trainer.step())
    timed = {name: torch.tensor(values) for name, values in seconds.items()}
    as_trained = timed["memory, 3 cycles"]
    return [
        {
            "size": size,
            "variant": name,
            "parameters": trainers[name].model.num_parameters(),
            "batch x tokens": f"{batch[0]} x {batch[1]}",
            "tokens/s": float(batch[0] * batch[1] / values.median()),
            "step ms": float(1000 * values.median()),
            "speed of the trained model / this": float((values / as_trained).median()),
        }
        for name, values in timed.items()
    ]


def run(quick: bool = False) -> list[dict]:
    """Rows of both sizes; quick: two turns of the laptop size."""
    if quick:
        return measure("laptop", turns=2)
    return measure("laptop", turns=31) + measure("25M", turns=7)


if __name__ == "__main__":
    main(TITLE, run)
