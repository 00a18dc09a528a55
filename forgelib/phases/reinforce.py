"""Phase 3, Step 2: REINFORCE on thoughts that are sampled in parallel.

    for record in reinforce(model, reference, tokenizer, words, rows, config, checkpointer=..., control=..., check=...):
        ...

An episode is a problem with K thoughts. In a step the thoughts of all its problems are sampled together, the true
answer is read after each, and the log-probabilities of the thought tokens are moved by what their thought was worth
beside the others of the same problem. KL to the frozen baked model keeps the language of the thoughts.

Muon's step is as long for a small gradient as for a large one. So the learning rates are scaled by the share of a
step's problems in which one thought was worth more than another: where all are solved, the weights stay where they are.
A problem that every thought gets wrong, and all in the same way, teaches nothing by itself. There, and only there, an
entropy term makes the thoughts differ, until one of them is right. The more of a step's problems are lost like that,
the less it counts: a model that is right nowhere would only forget how to write.

Rows are read and differentiated a group at a time, so that no tensor of batch x length x vocabulary is ever kept. What
would fail silently stops the run: rewards that are all equal, thoughts that are all the same, a gradient that does not
reach them.
"""

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from torch import nn

from forgelib.core.health import NonFiniteError, first_nonfinite
from forgelib.core.loop import Checkpointer, Control, ResumableLoop, RunStopped
from forgelib.core.rng import stream
from forgelib.data import ReasoningRow, Vocabulary
from forgelib.optim import MuGrokConfig, MuonGrokfast
from forgelib.phases.policy_step import PolicyStep, encoded
from forgelib.phases.rewards import REWARDS

#: What a silent failure looks like, and what to change.
SILENT = {
    "no_gradient": (
        "thoughts were worth something and no gradient reached the model: is it frozen, or its thought path detached?"
    ),
    "one_thought": (
        "all thoughts of every problem were the same: raise the temperature or top_p, or lower the learning rate"
    ),
    "zero_advantage": (
        "no thought was worth more than another of its problem: take problems that are neither solved nor hopeless "
        "(difficulty), more thoughts (n_thoughts), or the likelihood reward"
    ),
}


#: A gradient below this norm is rounding, at the KL's minimum for instance; the optimizer would blow it up to a step.
NOTHING = 1e-6


class SilentFailure(RuntimeError):
    """Training went on without learning anything; the text says what shows it and what to change."""


@dataclass(frozen=True)
class ReinforceConfig:
    """episodes: problems in all; batch_size: problems in a step; n_thoughts: K for each; thought_tokens: limit of a
    thought, its outer tokens counted; reward: one of REWARDS; reward_limit: nats; entropy_coefficient: weight of the
    entropy (nats a thought) of problems that no thought gets right; rows_at_once: problems times thoughts in one
    forward pass, memory only; check_every: episodes between two checks; alarm_steps: steps without any signal after
    which the run stops.
    """

    seed: int
    episodes: int = 10_000
    batch_size: int = 16
    n_thoughts: int = 6
    thought_tokens: int = 96
    temperature: float = 1.0
    top_p: float = 0.9
    reward: str = "likelihood"
    reward_limit: float = 5.0
    kl_coefficient: float = 0.1
    entropy_coefficient: float = 2.0
    gradient_clip: float = 1.0
    muon_lr: float = 5e-4
    adamw_lr: float = 5e-4
    warmup_steps: int = 10
    rows_at_once: int = 32
    check_every: int = 1000
    alarm_steps: int = 25

    def __post_init__(self):
        if self.reward not in REWARDS:
            raise ValueError(f"reward = {self.reward!r}: must be one of {', '.join(REWARDS)}")
        whole = ("episodes", "batch_size", "rows_at_once", "check_every", "alarm_steps")
        if not (min(self.kl_coefficient, self.entropy_coefficient) >= 0 < min(self.gradient_clip, self.reward_limit)):
            raise ValueError(
                "kl_coefficient and entropy_coefficient must be at least 0, gradient_clip and reward_limit above it: "
                f"{self}"
            )
        for name, least in [*((name, 1) for name in whole), ("n_thoughts", 2), ("thought_tokens", 2)]:
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {least}")


class LastGood:
    """The weights and the optimizer of the last check that was passed; before any, of the start."""

    def __init__(self, **parts):
        self.parts = parts
        self.keep()

    def keep(self) -> None:
        self.kept = {name: copy.deepcopy(part.state_dict()) for name, part in self.parts.items()}

    def restore(self) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(copy.deepcopy(self.kept[name]))

    def state_dict(self) -> dict:
        return self.kept

    def load_state_dict(self, state: dict) -> None:
        self.kept = state


def reinforce(
    model: nn.Module,
    reference: nn.Module,
    tokenizer,
    words: Vocabulary,
    rows: Sequence[ReasoningRow],
    config: ReinforceConfig,
    *,
    checkpointer: Checkpointer,
    control: Control | None = None,
    check: Callable[[nn.Module, int], dict] | None = None,
) -> Iterator[dict]:
    """Train `model` in place; `reference` is the frozen baked model.

    `check(model, episode)` is called every check_every episodes and at the end; its measurements join the record. Where
    they hold passed = False, weights and optimizer of the last check that was passed come back (restored = True).

    A model with dropout is kept in evaluation mode: its thoughts have to be read by the function they were drawn from.

    Yields a record a step: step, episode, reward (binary: its mean; likelihood: the mean of what thoughts are compared
    by, since what is left over the mean of a problem is 0 on average), avg_reward_100, likelihood (nats of the answer,
    mean), right (share
    of thoughts after which the true answer is the likeliest), thought_length, thought_diversity, num_thoughts,
    kl_divergence (nats a token), zero_advantage, grad_norm, thought_signal (see `PolicyStep.gradient`), learning_rate.
    Raises ValueError before work for rows without an answer, thoughts longer than the context, and a reference that is
    the model itself; SilentFailure, NonFiniteError, RunStopped on the way.
    """
    _check(rows, model, reference)
    asked = [encoded(row, tokenizer) for row in rows]
    steps = -(-config.episodes // config.batch_size)
    rates = {"muon_lr": config.muon_lr, "adamw_lr": config.adamw_lr}
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("rl", **rates))
    base_rates = [group["lr"] for group in optimizer.param_groups]
    good, watch = LastGood(model=model, optimizer=optimizer), Watch(config)
    parts = {"model": model, "optimizer": optimizer, "good": good, "watch": watch}
    loop, policy_step = (
        ResumableLoop(parts, steps, checkpointer, control),
        PolicyStep(model, reference, tokenizer, words, config),
    )
    _must_fit(model, asked, config)
    model.train(not _drops(model))
    with loop:
        for step in loop:
            chosen = [asked[i] for i in _problems(len(asked), step, config)]
            record = {"step": step, **policy_step(chosen, step)}
            scale = min(1.0, (step + 1) / max(1, config.warmup_steps)) * (1 - record["zero_advantage"])
            for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
                group["lr"] = rate * scale
            if not math.isfinite(record["grad_norm"]):
                raise NonFiniteError(step, first_nonfinite(model, lambda: None) or "the gradients")
            if record["grad_norm"] > NOTHING:
                optimizer.step()
            optimizer.zero_grad()
            episode = min(config.episodes, (step + 1) * config.batch_size)
            record |= {"episode": episode, "learning_rate": config.muon_lr * scale} | watch.look(record)
            before = min(config.episodes, step * config.batch_size)
            due = episode // config.check_every > before // config.check_every or step + 1 == steps
            if check is not None and due:
                record |= _checked(check(model, episode), good)
            yield record
    if loop.stopped:
        raise RunStopped(loop.done, steps)
    model.eval()


def _drops(model: nn.Module) -> bool:
    """Whether in training the model drops something at random."""
    named = (value for name, value in vars(model.config).items() if "drop" in name)
    modules = (module.p for module in model.modules() if isinstance(module, nn.Dropout))
    return any(isinstance(p, int | float) and p > 0 for p in (*named, *modules))


def _checked(measured: dict, good: LastGood) -> dict:
    if measured["passed"]:
        good.keep()
    else:
        good.restore()
    return {**measured, "restored": not measured["passed"]}


def _check(rows: Sequence[ReasoningRow], model: nn.Module, reference: nn.Module) -> None:
    if not rows:
        raise ValueError("reinforcement needs problems: got none")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("every weight of the model is frozen: nothing could be learned")
    own = {parameter.data_ptr() for parameter in model.parameters()}
    if any(parameter.data_ptr() in own for parameter in reference.parameters()):
        raise ValueError("the reference shares weights with the model: give a copy, or the KL between them is always 0")
    rows_of = [one.get_input_embeddings().weight.shape[0] for one in (model, reference)]
    if rows_of[0] > rows_of[1]:
        raise ValueError(
            f"the reference knows {rows_of[1]} tokens, the model {rows_of[0]}: give the baked model and its vocabulary"
        )
    if empty := [i for i, row in enumerate(rows) if not row.answer.strip()]:
        raise ValueError(f"row {empty[0]} has no answer ({len(empty)} such rows): nothing could be rewarded")


def _problems(n: int, step: int, config: ReinforceConfig) -> list[int]:
    """Indices of a step's problems: each once, in an order drawn anew, before any comes again."""
    found, place = [], step * config.batch_size
    while len(found) < config.batch_size:
        epoch, start = divmod(place + len(found), n)
        order = random.Random(stream(config.seed, "problems", epoch)).sample(range(n), n)
        found += order[start : start + config.batch_size - len(found)]
    return found


def _must_fit(model: nn.Module, asked: Sequence, config: ReinforceConfig) -> None:
    """Raises ValueError where prompt, thought and answer exceed the model's context."""
    limit = getattr(model.config, "max_position_embeddings", None)
    thinking = max(len(p.prompt) + len(p.answer) for p in asked) + config.thought_tokens + 1
    longest = max(thinking, *(len(p.direct) + len(p.answer) for p in asked))
    if limit is not None and longest > limit:
        raise ValueError(
            f"prompt, thought and answer may take {longest} tokens, the model's context has {limit}: lower "
            f"thought_tokens (now {config.thought_tokens}) or leave the longest problems out"
        )


class Watch:
    """The mean reward of the last episodes, and what would fail without a sound."""

    def __init__(self, config: ReinforceConfig):
        self.config = config
        self.rewards: list[float] = []
        self.silent: dict[str, int] = {"zero_advantage": 0, "no_gradient": 0, "one_thought": 0}

    def look(self, record: dict) -> dict:
        """avg_reward_100; raises SilentFailure where nothing has been learned for alarm_steps steps."""
        n_steps = max(1, -(-100 // self.config.batch_size))
        self.rewards = [*self.rewards, record["reward"]][-n_steps:]
        signs = {
            "zero_advantage": record["zero_advantage"] == 1.0,
            "no_gradient": record["zero_advantage"] < 1.0 and min(record["thought_signal"], record["grad_norm"]) == 0.0,
            "one_thought": record["thought_diversity"] == 0.0,
        }
        self.silent = {name: (self.silent[name] + 1) * shown for name, shown in signs.items()}
        for name, told in SILENT.items():
            if self.silent[name] >= self.config.alarm_steps:
                raise SilentFailure(f"for {self.silent[name]} steps, the last of them step {record['step']}, {told}")
        return {"avg_reward_100": fmean(self.rewards)}

    def state_dict(self) -> dict:
        return {"rewards": self.rewards, "silent": self.silent}

    def load_state_dict(self, state: dict) -> None:
        self.rewards, self.silent = list(state["rewards"]), dict(state["silent"])
