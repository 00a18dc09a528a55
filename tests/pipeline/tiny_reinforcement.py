"""A reinforcement small enough to be killed and begun again within seconds, in processes that start at once.

python tiny_reinforcement.py        for every line `folder pause` a process that trains there; its number is printed
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch._dynamo  # what the first optimizer of a process would import, in seconds
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from forgelib.core.loop import Checkpointer
from forgelib.core.rng import seed_everything
from forgelib.core.tracking import Tracker
from forgelib.data import vocabulary
from forgelib.data.tokenizer import train_bpe
from forgelib.data.traces import procedural_rows
from forgelib.phases.reinforce import ReinforceConfig, reinforce
from forgelib.thoughts import add_vocabulary

STEPS, BATCH = 60, 2
CONFIG = ReinforceConfig(
    seed=0,
    episodes=STEPS * BATCH,
    batch_size=BATCH,
    n_thoughts=3,
    thought_tokens=6,
    muon_lr=0.01,
    adamw_lr=0.003,
    rows_at_once=4,
    check_every=8 * BATCH,
    warmup_steps=20,
)
WORDS = vocabulary("forge-12")
ROWS = procedural_rows(20, WORDS, seed=0, strategies=["chain_of_thought"])


def models() -> tuple[LlamaForCausalLM, LlamaForCausalLM, object]:
    """The model with the vocabulary, its frozen twin, the tokenizer. Dropout draws from the generator of the run."""
    seed_everything(0)
    tokenizer, _ = train_bpe([row.text for row in ROWS], 280)
    small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, attention_dropout=0.1, **small)
    model = LlamaForCausalLM(config)
    add_vocabulary(model, tokenizer, WORDS)
    reference = LlamaForCausalLM(model.config)
    reference.load_state_dict(model.state_dict())
    return model, reference.requires_grad_(False), tokenizer


def check(model: torch.nn.Module, episode: int) -> dict:
    """Every second check fails, and what is measured tells one model from another."""
    measured = float(sum(parameter.detach().double().abs().sum() for parameter in model.parameters()))
    return {"passed": episode % (2 * CONFIG.check_every) != 0, "measured": measured}


def reinforce_in(folder: Path, pause: float = 0.0) -> None:
    """Reinforce in `folder` with a journal and a checkpoint every third step, and leave the weights there."""
    torch.set_num_threads(1)
    model, reference, tokenizer = models()
    checkpointer = Checkpointer(folder / "checkpoints", every_steps=3)
    records = reinforce(model, reference, tokenizer, WORDS, ROWS, CONFIG, checkpointer=checkpointer, check=check)
    for _ in Tracker(folder, run_name="tiny").follow(records):
        time.sleep(pause)
    save_file({name: p.detach().clone() for name, p in model.named_parameters()}, folder / "weights.safetensors")


def serve() -> None:
    """A forked process for every line of the standard input."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    for line in sys.stdin:
        folder, pause = line.rsplit(maxsplit=1)
        if (number := os.fork()) == 0:
            try:
                reinforce_in(Path(folder), float(pause))
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
            os._exit(0)
        print(number, flush=True)


if __name__ == "__main__":
    serve()
