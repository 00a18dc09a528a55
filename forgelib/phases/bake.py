"""Phase 3, Step 1: reasoning traces are baked into a model, supervised on trace and answer.

    for record in bake(model, tokenizer, words, train, watch, config, checkpointer=..., control=...):
        ...

yields one small record per optimizer step; a few times on the way it holds what the model can do by itself: it thinks
and answers greedily, and the answers are compared. Training ends when that reaches its targets. There is no stop on a
plateau: small models sit on one before they learn to reason.

The question, and every equation that is false (a slip that the trace goes on to mend), carry no loss. A share of the
rows is shown without its thought, under a prompt that asks for the answer at once, so that the path without one stays
in distribution: later steps compare against it.
"""

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from forgelib.core.ema import WeightAverage
from forgelib.core.health import NonFiniteError, first_nonfinite
from forgelib.core.loop import Checkpointer, Control, ResumableLoop, RunStopped
from forgelib.core.rng import stream
from forgelib.data import ReasoningRow, Vocabulary
from forgelib.data.trace_checks import false_spans
from forgelib.evaluate.reasoning import reason, token_usage
from forgelib.optim import MuGrokConfig, MuonGrokfast
from forgelib.optim.schedule import warmup_then_decay

IGNORED = -100
Encoded = tuple[list[int], list[int]]  # input_ids and labels of a row
#: Batches among which rows are sorted by length: they then carry little padding, and still come in random order.
SORTED_TOGETHER = 16
#: Batches are as long as a multiple of this: every new shape costs the CPU's matrix library a second to prepare.
PADDED_TO = 16


@dataclass(frozen=True)
class BakeConfig:
    """How traces are baked. Learning rates rise over `warmup_share` of the steps and fall linearly to zero.

    looks: how often on the way the model is let answer. target, strategy_target: shares of right answers, over all rows
    and in each strategy, that end the training where each is passed by more than its standard error at two looks in a
    row: of many strategies on a few rows each, some are at their target by luck.
    """

    seed: int
    epochs: int = 5
    batch_size: int = 32
    muon_lr: float = 1e-4
    adamw_lr: float = 1e-4
    warmup_share: float = 0.05
    ema_decay: float = 0.98
    direct_share: float = 0.12
    looks: int = 8
    target: float = 0.85
    strategy_target: float = 0.765
    max_new_tokens: int = 96
    max_tokens: int = 512


class Converged:
    """How many looks in a row found every target surely reached; what a checkpoint has to keep of it."""

    def __init__(self):
        self.looks = 0

    def look(self, record: dict) -> None:
        """Count a record's look, if it holds one."""
        if "convergence_progress" in record:
            self.looks = self.looks + 1 if record["convergence_progress"] == 1.0 else 0

    def state_dict(self) -> dict:
        return {"looks": self.looks}

    def load_state_dict(self, state: dict) -> None:
        self.looks = state["looks"]


def bake(
    model: nn.Module,
    tokenizer,
    words: Vocabulary,
    train: Sequence[ReasoningRow],
    watch: Sequence[ReasoningRow],
    config: BakeConfig,
    *,
    checkpointer: Checkpointer,
    control: Control | None = None,
) -> Iterator[dict]:
    """Train `model` in place on `train` until its answers to `watch` reach the targets, at most `epochs` times over.

    What is looked at, and what `model` holds at the end, is the moving average of its weights.

    Yields a record a step: step, epoch, loss (the model's own in training, nats per token of trace and answer; a
    Cognate's holds its halting loss and bonus, too), learning_rate, grad_norm, tokens, tokens_per_second; and
    where it was looked at, accuracy_overall, accuracy_<strategy>, token_usage_<tag> and convergence_progress (1: the
    targets are surely reached). Raises ValueError without rows, or with a batch of fewer than one;
    NonFiniteError naming the step and the first broken layer; RunStopped when `control` asked for it.
    """
    if not train or not watch:
        raise ValueError(f"baking needs rows to train on and to watch: got {len(train)} and {len(watch)}")
    if config.batch_size < 1 or config.epochs < 1 or config.looks < 1:
        raise ValueError(f"epochs, batch_size and looks must be at least 1: {config}")
    encoded = encode_both_ways(tokenizer, train, config.max_tokens)
    per_epoch = -(-len(encoded) // config.batch_size)
    steps, every = config.epochs * per_epoch, max(1, config.epochs * per_epoch // config.looks)
    rates = {"muon_lr": config.muon_lr, "adamw_lr": config.adamw_lr}
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("baking", **rates))
    base_rates = [group["lr"] for group in optimizer.param_groups]
    average = WeightAverage(model, config.ema_decay)
    converged = Converged()
    parts = {"model": model, "optimizer": optimizer, "average": average, "converged": converged}
    loop = ResumableLoop(parts, steps, checkpointer, control)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    torch.manual_seed(stream(config.seed, "dropout"))  # a checkpoint, where there is one, restores its own
    model.train()
    with loop:
        for step in loop:
            epoch, place = divmod(step, per_epoch)
            scale = warmup_then_decay(step, steps, config.warmup_share)
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * scale
            if place == 0 or step == loop.start_step:
                shown = shown_in(epoch, encoded, config)
                batches = epoch_order(shown, config, epoch)
            record = _train_step(model, optimizer, *padded([shown[i] for i in batches[place]], pad), step)
            average.update(model)
            record |= {"epoch": (step + 1) / per_epoch, "learning_rate": config.muon_lr * scale}
            if (step + 1) % every == 0 or step + 1 == steps:
                with average.applied(model):
                    record |= look(model, tokenizer, words, watch, config)
            converged.look(record)
            yield record
            if converged.looks >= 2:
                break
    if loop.stopped:
        raise RunStopped(loop.done, steps)
    average.copy_to(model)
    model.eval()


def look(
    model: nn.Module, tokenizer, words: Vocabulary, rows: Sequence[ReasoningRow], config: BakeConfig
) -> dict[str, float]:
    """The `baking/` metrics of METHOD that are measured by letting the model think: accuracies, usage, progress."""
    found = reason(model, tokenizer, words, rows, max_new_tokens=config.max_new_tokens)
    strategies = found.by_strategy()
    reached = [_reached(found.correct, config.target)]
    reached += [_reached(correct, config.strategy_target) for correct in strategies.values()]
    return {
        "accuracy_overall": float(found.correct.mean()),
        **{f"accuracy_{name}": float(correct.mean()) for name, correct in strategies.items()},
        **{f"token_usage_{name}": share for name, share in token_usage(found, words).items()},
        "convergence_progress": max(0.0, min(1.0, *reached)),
    }


def _reached(correct: np.ndarray, target: float) -> float:
    """How much of a target is surely reached; all of one that is 0."""
    return _surely(correct) / target if target > 0 else 1.0


def _surely(correct: np.ndarray) -> float:
    """The share of True less its standard error."""
    share = float(correct.mean())
    return share - (share * (1 - share) / len(correct)) ** 0.5


def encode(tokenizer, rows: Sequence[ReasoningRow], max_tokens: int, direct: bool = False) -> list[Encoded]:
    """input_ids and labels of each row; labels are IGNORED on the prompt and on false equations.

    With `direct` the prompt asks for the answer at once, and the thought is left out. Raises ValueError for a row
    longer than `max_tokens`.
    """
    if not rows:
        return []
    prompts = tokenizer([row.direct_prompt if direct else row.prompt for row in rows], add_special_tokens=False)
    texts = [f" {row.answer}" if direct else f" {row.reasoning} {row.answer}" for row in rows]
    told = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    parts = zip(rows, prompts["input_ids"], texts, told["input_ids"], told["offset_mapping"], strict=True)
    last, encoded = [tokenizer.eos_token_id], []
    for row, prompt, text, ids, offsets in parts:
        slips = false_spans(text)
        labels = [
            IGNORED if any(start < stop and begin < end for begin, stop in slips) else token
            for token, (start, end) in zip(ids, offsets, strict=True)
        ]
        if (n_tokens := len(prompt) + len(ids) + 1) > max_tokens:
            raise ValueError(
                f"a row of {row.source} has {n_tokens} tokens, max_tokens is {max_tokens}: raise it, or leave the row "
                f"out ({row.prompt[:60]!r})"
            )
        encoded.append((prompt + ids + last, [IGNORED] * len(prompt) + labels + last))
    return encoded


def encode_both_ways(tokenizer, rows: Sequence[ReasoningRow], max_tokens: int) -> list[tuple[Encoded, Encoded]]:
    """Each row with its thought, and without, as `shown_in` chooses from."""
    both = (encode(tokenizer, rows, max_tokens, direct) for direct in (False, True))
    return list(zip(*both, strict=True))


def shown_in(epoch: int, encoded: Sequence[tuple[Encoded, Encoded]], config: BakeConfig) -> list[Encoded]:
    """Each row with its thought or, in `direct_share` of the cases, without. Drawn anew in every epoch: which rows are
    always shown without one, a model learns by heart, and then answers their like directly, too."""
    dice = random.Random(stream(config.seed, "rows without their thought", epoch))
    return [direct if dice.random() < config.direct_share else thought for thought, direct in encoded]


def epoch_order(encoded: Sequence[Encoded], config: BakeConfig, epoch: int) -> list[list[int]]:
    """Batches of row indices of an epoch: every row once, rows of like length together, batches in random order."""
    dice = random.Random(stream(config.seed, "baking order", epoch))
    order = list(range(len(encoded)))
    dice.shuffle(order)
    group = SORTED_TOGETHER * config.batch_size
    batches = []
    for start in range(0, len(order), group):
        rows = sorted(order[start : start + group], key=lambda i: len(encoded[i][0]))
        batches += [rows[i : i + config.batch_size] for i in range(0, len(rows), config.batch_size)]
    dice.shuffle(batches)
    return batches


def padded(rows: Sequence[Encoded], pad: int) -> tuple[Tensor, Tensor]:
    """input_ids and labels [B, T], padded on the right, where no earlier token looks; T a multiple of PADDED_TO."""
    longest = -(-max(len(ids) for ids, _ in rows) // PADDED_TO) * PADDED_TO
    input_ids, labels = torch.full((len(rows), longest), pad), torch.full((len(rows), longest), IGNORED)
    for i, (ids, wanted) in enumerate(rows):
        input_ids[i, : len(ids)], labels[i, : len(ids)] = torch.tensor(ids), torch.tensor(wanted)
    return input_ids, labels


def _train_step(model: nn.Module, optimizer: MuonGrokfast, input_ids: Tensor, labels: Tensor, step: int) -> dict:
    started, device = time.perf_counter(), next(model.parameters()).device
    input_ids, labels = input_ids.to(device), labels.to(device)

    def forward():
        return model(input_ids=input_ids, labels=labels)

    output = forward()
    output.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    grad_norm, loss = float(torch.stack(torch._foreach_norm(gradients)).norm()), float(output.loss.detach())
    if not np.isfinite([loss, grad_norm]).all():
        raise NonFiniteError(step, first_nonfinite(model, forward) or "the gradients")
    optimizer.step()
    optimizer.zero_grad()
    seconds, tokens = time.perf_counter() - started, input_ids.numel()
    return {"step": step, "loss": loss, "grad_norm": grad_norm, "tokens": tokens, "tokens_per_second": tokens / seconds}
