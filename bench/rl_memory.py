"""(h) Memory and time of one REINFORCE step: rows read and differentiated in groups, against all of them at once.

    in groups     PolicyStep.gradient, rows_at_once rows in one forward and backward pass
    all at once   the same loss as it is written down: logits, policy and KL of all rows, batch x length x vocabulary

Both end in the same gradient, which is checked: their difference is measured against the gradient's norm, and above
1e-5 the bench stops. The peak is what a step adds to its process at most, gradients included, weights not, as the
kernel counts it, each in a process of its own. Times are medians of interleaved repeats in one process, so a busy
machine slows both.
"""

import ctypes
import multiprocessing
import statistics
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bench.table import main
from forgelib.data import vocabulary
from forgelib.data.tokenizer import train_bpe
from forgelib.data.traces import procedural_rows
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.phases.policy_step import PolicyStep, Rows, encoded
from forgelib.phases.reinforce import ReinforceConfig
from forgelib.phases.rewards import kl_per_token, policy_terms
from forgelib.thoughts import add_vocabulary
from forgelib.thoughts.drawing import policy

TITLE = "(h) peak memory and time of an RL step in groups of rows, against batch x length x vocabulary at once"
PROBLEMS, THOUGHTS, LENGTH, SAME = 4, 6, 32, 1e-5
#: Rows in one forward pass; None is the naive way.
WAYS = {"all at once": None, "4 in a group": 4, "1 in a group": 1}
#: A server that nothing was computed in: a process forked after a backward pass may be unable to do one.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["bench.table", "forgelib.data.traces", "forgelib.phases.reinforce", "transformers.models.llama.modeling_llama"]
)


def llama() -> PreTrainedModel:
    """A small Llama with the vocabulary of GPT-2."""
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 50_257}
    return LlamaForCausalLM(LlamaConfig(hidden_size=128, intermediate_size=384, **sizes))


def cognate() -> PreTrainedModel:
    """The Cognate of the laptop profile."""
    sizes = {"d_model": 128, "d_ff": 384, "n_layers": 3, "window": 32, "memory_chunk": 32}
    return CognateForCausalLM(CognateConfig(memory_layers=[1], recursion_layers=1, **sizes))


MODELS = {"small Llama, 50,257 tokens": llama, "laptop Cognate, 1,024 tokens": cognate}


class Case:
    """A model with random weights, another as its reference, thoughts that it had, and what they were worth."""

    def __init__(self, name: str, n_problems: int):
        words = vocabulary("forge-12")
        rows = procedural_rows(40, words, seed=0, strategies=["chain_of_thought"])
        tokenizer, _ = train_bpe([row.text for row in rows], 320)
        torch.manual_seed(0)
        self.model, reference = MODELS[name]().eval(), MODELS[name]()
        add_vocabulary(self.model, tokenizer, words)
        config = ReinforceConfig(
            seed=0, batch_size=n_problems, n_thoughts=THOUGHTS, thought_tokens=LENGTH, gradient_clip=float("inf")
        )
        self.step = PolicyStep(self.model, reference, tokenizer, words, config)
        problems = [encoded(row, tokenizer) for row in rows[:n_problems]]
        self.rows: Rows = self.step.rows(problems, self.step.think(problems, 0))
        self.advantages = torch.randn(self.rows.of.shape)

    def gradient(self, rows_at_once: int | None) -> None:
        """Leave the step's gradient in the model."""
        self.model.zero_grad()
        if rows_at_once is None:
            naive(self.model, self.step.reference, self.rows, self.advantages, self.step.config)
        else:
            self.step.config = replace(self.step.config, rows_at_once=rows_at_once)
            self.step.gradient(self.rows, self.advantages)

    def found(self) -> Tensor:
        """The gradient in the model, as one vector."""
        return torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])


def naive(model: nn.Module, reference: nn.Module, rows: Rows, advantages: Tensor, config: ReinforceConfig) -> None:
    """-A log P(thought) + kl_coefficient KL, mean over the B K thoughts, from tensors [B K, T - 1, V]."""
    input_ids, thought = (part[rows.of.flatten()] for part in (rows.input_ids, rows.thought))
    targets, drawn = input_ids[:, 1:], thought[:, 1:]
    logits = model(input_ids=input_ids).logits[:, :-1]
    held = policy(logits, config.temperature, config.top_p, targets)
    log_probs = held.gather(-1, targets[..., None])[..., 0].where(drawn, 0.0).sum(1)
    with torch.no_grad():
        frozen = torch.log_softmax(reference(input_ids=input_ids).logits[:, :-1], -1)
    kl = kl_per_token(torch.log_softmax(logits, -1), frozen).where(drawn, 0.0).sum(1)
    (policy_terms(log_probs, advantages.flatten()) + config.kl_coefficient * kl).mean().backward()


def peak(name: str, n_problems: int, rows_at_once: int | None) -> float:
    """Megabytes that one step adds at most, in a process of its own; NaN where the kernel does not tell."""
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_measure, args=(there, name, n_problems, rows_at_once, torch.get_num_threads()))
    process.start()
    there.close()  # so that a child that dies ends the wait
    megabytes = here.recv()
    process.join()
    return megabytes


def _measure(there: Connection, name: str, n_problems: int, rows_at_once: int | None, n_threads: int) -> None:
    torch.set_num_threads(n_threads)
    case = Case(name, n_problems)
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before must not be used again unseen
        Path("/proc/self/clear_refs").write_text("5")
        before = _kilobytes("VmRSS")
        case.gradient(rows_at_once)
        there.send((_kilobytes("VmHWM") - before) * 1024 / 1e6)
    except OSError:
        there.send(float("nan"))


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def timed(case: Case, repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each way, and how far its gradient is from the naive one, in norms of that.

    Raises ValueError where two ways do not give the same gradient.
    """
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    apart, first = {}, None
    for repeat in range(-1, repeats):
        for way, rows_at_once in WAYS.items():
            started = time.perf_counter()
            case.gradient(rows_at_once)
            if repeat >= 0:
                times[way].append(time.perf_counter() - started)
            found = case.found()
            first = found if first is None else first
            apart[way] = float((found - first).norm() / first.norm())
            if not apart[way] < SAME:
                raise ValueError(f"{way}: the gradient is {apart[way]:.1e} of its norm away from the naive one")
    return times, apart


def run(quick: bool = False) -> list[dict]:
    """A row for each model and way: peak in megabytes, median milliseconds, how often they fit into the naive ones."""
    n_problems, rows = 1 if quick else PROBLEMS, []
    for name in MODELS:
        peaks = {way: peak(name, n_problems, rows_at_once) for way, rows_at_once in WAYS.items()}
        case = Case(name, n_problems)
        times, apart = timed(case, 1 if quick else 3)
        medians = {way: statistics.median(values) for way, values in times.items()}
        n_rows, length = case.rows.input_ids.shape
        rows += [
            {
                "model": name,
                "rows x tokens": f"{n_rows} x {length}",
                "logits MB": 4 * n_rows * length * case.model.config.vocab_size / 1e6,
                "way": way,
                "peak MB": peaks[way],
                "naive / peak": peaks["all at once"] / peaks[way],
                "median ms": 1e3 * medians[way],
                "naive / time": medians["all at once"] / medians[way],
                "gradients apart": apart[way],
            }
            for way in WAYS
        ]
    return rows


if __name__ == "__main__":
    main(TITLE, run)
