"""Prompt baking (2409.13697): a prompt's effect is trained into the weights, and the prompt is then left out.

    theta_u = argmin KL( P_theta(. | u, x, y_<t) || P_theta_u(. | x, y_<t) )   summed over the tokens of y
              y ~ P_theta(. | u, x)                                            sampled afresh at every step

    baker = PromptBaker(model, questions, config, heldout)
    for record in baker.bake(checkpointer):
        ...
    baker.effect(others), then baker.merge(), baker.save(folder) or baker.unload()

The student is a LoRA adapter (peft) on the model, the teacher the same weights with the adapter switched off: one copy
of the model in memory. Everything stays in evaluation mode except the adapter's own dropout, so the student learns to
be the model as it will be used.

Prompt pursuit bakes the prompt again and again: every `refresh_teacher_every` steps the teacher becomes the student of
that moment, with the prompt and without gradient. 1 is the paper's limit. AdamW then follows its own noise, which no
longer meets a fixed target: it wants a far lower rate than rounds of some thirty steps.
"""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from forgelib.core.health import LossMonitor, NonFiniteError, first_nonfinite
from forgelib.core.loop import Checkpointer, CheckpointError, Control, ResumableLoop, RunStopped
from forgelib.core.rng import seeded, stream
from forgelib.evaluate.continuations import (
    PromptedQuestions,
    Read,
    kl_per_continuation,
    read_continuations,
    sample_continuations,
)
from forgelib.evaluate.prompt_effect import PromptEffect, compare, prompt_effect
from forgelib.optim.lora_layers import adapted_layers
from forgelib.optim.schedule import warmup_then_decay


@dataclass(frozen=True)
class PromptBakingConfig:
    """How a prompt is baked. Raises ValueError naming field, value and range.

    steps, batch_size: optimizer steps, and questions in each; every question is used once before one is used again.
    max_new_tokens: where a sampled continuation ends if the model does not end it.
    rank, alpha, dropout: of LoRA; the adapter is scaled by alpha / rank.
    learning_rate: AdamW's; it rises over warmup_share of the steps, then falls linearly to zero.
    refresh_teacher_every: steps of a round of prompt pursuit; None keeps the model as it came for the teacher.
    stop_at_share: half-baking; stop once the held-out KL, looked at every evaluate_every steps, fell by this share.
    """

    steps: int
    seed: int
    batch_size: int = 16
    max_new_tokens: int = 32
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    learning_rate: float = 1e-3
    warmup_share: float = 0.05
    max_grad_norm: float = 1.0
    refresh_teacher_every: int | None = None
    stop_at_share: float | None = None
    evaluate_every: int = 10

    def __post_init__(self):
        for name in ("steps", "batch_size", "max_new_tokens", "rank", "evaluate_every", "refresh_teacher_every"):
            value = getattr(self, name)
            if value is None and name == "refresh_teacher_every":
                continue
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"PromptBakingConfig.{name} = {value!r}: must be a whole number above 0")
        for name in ("alpha", "learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"PromptBakingConfig.{name} = {getattr(self, name)!r}: must be above 0 and finite")
        for name in ("dropout", "warmup_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"PromptBakingConfig.{name} = {getattr(self, name)!r}: must be at least 0 and below 1")
        if self.stop_at_share is not None and not 0 < self.stop_at_share < 1:
            raise ValueError(f"PromptBakingConfig.stop_at_share = {self.stop_at_share!r}: must be between 0 and 1")

    def rate_at(self, step: int) -> float:
        """Learning rate at `step` (from 0)."""
        return self.learning_rate * warmup_then_decay(step, self.steps, self.warmup_share)


class _Adapter:
    """Matrices of an adapter, the student's or the teacher's, as a part of a resumable run."""

    def __init__(self, weights: dict[str, Tensor]):
        self.weights = weights

    def state_dict(self) -> dict:
        return dict(self.weights)

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        for name, weight in self.weights.items():
            weight.copy_(state[name])


class _Origin:
    """What a checkpoint belongs to: frozen weights, questions and settings. Another model is refused, not continued."""

    def __init__(self, frozen: dict[str, Tensor], *settings: object):
        digest = hashlib.sha256(repr(settings).encode())
        for name, weight in frozen.items():
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        self.digest = digest.hexdigest()

    def state_dict(self) -> dict:
        return {"sha256": self.digest}

    def load_state_dict(self, state: dict) -> None:
        if state["sha256"] != self.digest:
            raise CheckpointError(
                "the checkpoint belongs to another model, other questions or other settings (was this model baked and "
                "merged before?): load the model again as it was, or choose another folder"
            )


class PromptBaker:
    """Bakes one prompt into one causal LM. The model is wrapped in place until `merge` or `unload` gives it back.

    questions are trained on; heldout ones are watched during baking. Raises ValueError for a model without layers to
    adapt or with an adapter on it already, and for texts longer than the model's positions.
    """

    def __init__(
        self,
        model: nn.Module,
        questions: PromptedQuestions,
        config: PromptBakingConfig,
        heldout: PromptedQuestions | None = None,
    ):
        if isinstance(model, PeftModel) or getattr(model, "peft_config", None):
            raise ValueError("the model has an adapter on it already: merge or unload it first")
        if config.stop_at_share is not None and heldout is None:
            raise ValueError("stop_at_share needs heldout questions: it is their KL that is watched")
        self.questions, self.config, self.heldout = questions, config, heldout
        self._teacher: dict[str, Tensor] = {}
        self._check_lengths(model, questions, *([heldout] if heldout else []))
        model.eval()
        self.device = next(model.parameters()).device
        longest = max(questions.bare, key=len)
        probe = torch.tensor([(longest * (config.max_new_tokens + 1))[: len(longest) + config.max_new_tokens]])
        layers = adapted_layers(model, probe.to(self.device))
        self._learned = {name: p.requires_grad for name, p in model.named_parameters()}
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=layers,
            fan_in_fan_out=all(isinstance(model.get_submodule(name), Conv1D) for name in layers),
            task_type="CAUSAL_LM",
        )
        with seeded(stream(config.seed, "adapter"), self.device):
            self.model = get_peft_model(model, lora)
        self.model.eval()
        self._first = {name: weight.detach().clone() for name, weight in self.trainable().items()}

    def _check_lengths(self, model: nn.Module, *asked: PromptedQuestions) -> None:
        limit = getattr(model.config, "max_position_embeddings", None)
        longest = max(len(ids) for questions in asked for ids in (*questions.prompted, *questions.bare))
        if limit is not None and longest + self.config.max_new_tokens > limit:
            raise ValueError(
                f"prompt and question have up to {longest} tokens, with max_new_tokens = {self.config.max_new_tokens} "
                f"{longest + self.config.max_new_tokens}: the model has {limit} positions. Shorten the one or the other"
            )

    def trainable(self) -> dict[str, Tensor]:
        """The adapter's matrices by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def bare(self, contexts: Sequence, continuations: Sequence) -> Read:
        """What the model with its adapter expects (a Reader)."""
        return read_continuations(self.model.get_base_model(), contexts, continuations)

    def frozen(self, contexts: Sequence, continuations: Sequence) -> Read:
        """What the model as it came expects (a Reader); no gradient."""
        with torch.no_grad(), self.model.disable_adapter():
            return read_continuations(self.model.get_base_model(), contexts, continuations)

    def bake(self, checkpointer: Checkpointer, control: Control | None = None) -> Iterator[dict]:
        """Train the adapter with AdamW (MuonGrokfast's QK-Clip would scale the frozen W_q and W_k, which teach).

        A record a step, resumable at any of them; without a checkpoint it starts from the adapter as it was made.
        Yields step, kl (nats per continuation of the batch), grad_norm (before clipping), learning_rate, tokens (of the
        continuations) and tokens_per_second; every `evaluate_every` steps and at the last also heldout_kl and
        share_removed of it. Half-baking ends with the record whose share_removed reached `stop_at_share`.
        Raises NonFiniteError naming the step and the first broken layer, DivergedError, and RunStopped when
        `control` asked for it.
        """
        config, weights = self.config, self.trainable()
        _Adapter(weights).load_state_dict(self._first)
        optimizer = torch.optim.AdamW(weights.values(), lr=config.learning_rate, weight_decay=0.0)
        monitor = LossMonitor(floor=0.1 * config.max_new_tokens)
        base = {name: p for name, p in self.model.named_parameters() if name not in weights}
        origin = _Origin(base, self.questions, self.heldout, config)
        if config.refresh_teacher_every is not None:
            self._teacher = {name: weight.detach().clone() for name, weight in weights.items()}
        parts = {"origin": origin, "adapter": _Adapter(weights), "teacher": _Adapter(self._teacher)}
        parts |= {"optimizer": optimizer, "monitor": monitor}
        loop = ResumableLoop(parts, config.steps, checkpointer, control)
        with loop:
            texts, before = self._watched()
            for step in loop:
                if "stopped_at" in loop.extra:
                    continue  # half-baked: the rest of the steps is left out, and the loop ends as it always does
                record = self._step(step, optimizer)
                monitor.update(step, record["kl"])
                if before and ((step + 1) % config.evaluate_every == 0 or step + 1 == config.steps):
                    now = float(compare(self.frozen, self.bare, self.heldout, texts).kl.mean())
                    record |= {"heldout_kl": now, "share_removed": 1 - now / before}
                    if config.stop_at_share is not None and record["share_removed"] >= config.stop_at_share:
                        loop.extra["stopped_at"] = step + 1
                yield record
        if loop.stopped:
            raise RunStopped(loop.done, config.steps)

    def _watched(self) -> tuple[list, float]:
        """Continuations of the held-out questions by the prompted model, and the bare model's KL on them."""
        if self.heldout is None:
            return [], 0.0
        texts = self.sample(self.heldout, 1, stream(self.config.seed, "heldout"))
        before = float(compare(self.frozen, self.frozen, self.heldout, texts).kl.mean())
        if before == 0:
            raise ValueError("on the held-out questions the prompt changes nothing at all: there is nothing to bake")
        return texts, before

    def sample(self, questions: PromptedQuestions, samples: int, seed: int) -> list[list[list[int]]]:
        """Continuations [samples][question] of the frozen model with the prompt."""
        with self.model.disable_adapter():
            return _sample(self.model.get_base_model(), questions, samples, self.config.max_new_tokens, seed)

    def rows_at(self, step: int) -> list[int]:
        """Questions of a step: a new order for every pass through them, from the seed alone."""
        n, size = len(self.questions), self.config.batch_size
        return [int(self._order(place // n)[place % n]) for place in range(step * size, (step + 1) * size)]

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(stream(self.config.seed, "order", epoch)).permutation(len(self.questions))

    def _step(self, step: int, optimizer: torch.optim.Optimizer) -> dict:
        started, config = time.perf_counter(), self.config
        rows = self.rows_at(step)
        prompted = [self.questions.prompted[i] for i in rows]
        bare = [self.questions.bare[i] for i in rows]
        model = self.model.get_base_model()
        with torch.no_grad(), self._teaching(step):
            seed = stream(config.seed, "continuations", step)
            texts = sample_continuations(model, prompted, max_new_tokens=config.max_new_tokens, seed=seed)
            teacher = read_continuations(model, prompted, texts)
        optimizer.zero_grad()
        with self._dropout(step):
            kl = kl_per_continuation(teacher, self.bare(bare, texts)).mean()
            (kl / config.max_new_tokens).backward()  # a constant scale, so that the clipping norm suits any length
        loss = float(kl.detach())
        grad_norm = float(nn.utils.clip_grad_norm_(list(self.trainable().values()), config.max_grad_norm))
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            where = first_nonfinite(model, lambda: self.bare(bare, texts))
            raise NonFiniteError(step, where or "the gradients")
        for group in optimizer.param_groups:
            group["lr"] = config.rate_at(step)
        optimizer.step()
        tokens = int(teacher.real.sum())
        return {
            "step": step,
            "kl": loss,
            "grad_norm": grad_norm,
            "learning_rate": config.rate_at(step),
            "tokens": tokens,
            "tokens_per_second": tokens / (time.perf_counter() - started),
        }

    @contextmanager
    def _teaching(self, step: int):
        """The teacher's weights in the model: none of the adapter, or the adapter as the round began."""
        every, student = self.config.refresh_teacher_every, self.trainable()
        if every is None:
            with self.model.disable_adapter():
                yield
            return
        mine = {name: weight.detach().clone() for name, weight in student.items()}
        if step % every == 0:
            self._teacher |= mine
        _Adapter(student).load_state_dict(self._teacher)
        try:
            yield
        finally:
            _Adapter(student).load_state_dict(mine)

    @contextmanager
    def _dropout(self, step: int):
        """The adapter's dropout on, drawn from the step; the model's own stays off."""
        layers = [m.lora_dropout for m in self.model.modules() if isinstance(m, LoraLayer)]
        with seeded(stream(self.config.seed, "dropout", step), self.device):
            for layer in layers:
                layer.train()
            try:
                yield
            finally:
                for layer in layers:
                    layer.eval()

    def effect(self, questions: PromptedQuestions, samples: int = 4, seed: int | None = None) -> PromptEffect:
        """How much of the prompt's effect the adapter has, on questions that baking did not see.

        For the control of equal steps, bake a shuffled prompt and ask for the effect of the true one.
        """
        self._check_lengths(self.model, questions)
        seed = stream(self.config.seed, "effect") if seed is None else seed
        texts = self.sample(questions, samples, seed)
        return prompt_effect(self.frozen, self.frozen, self.bare, questions, texts, seed)

    def merge(self) -> nn.Module:
        """The model with the adapter added into its weights, rounded to their type; the baker is done."""
        return self._freed(self.model.merge_and_unload())

    def unload(self) -> nn.Module:
        """The model as it came, the adapter thrown away; the baker is done."""
        return self._freed(self.model.unload())

    def _freed(self, model: nn.Module) -> nn.Module:
        for name, p in model.named_parameters():
            p.requires_grad_(self._learned[name])
        return model

    def save(self, folder: Path | str) -> None:
        """The adapter alone, adapter_model.safetensors and adapter_config.json, as peft writes it."""
        self.model.save_pretrained(str(folder), save_embedding_layers=False)


def load_baked(model: nn.Module, folder: Path | str) -> PeftModel:
    """`model` with a saved adapter on it, in evaluation mode. The model must be the one that was baked."""
    return PeftModel.from_pretrained(model, str(folder)).eval()


def effect_between(
    original: nn.Module, baked: nn.Module, questions: PromptedQuestions, *, max_new_tokens: int, samples: int, seed: int
) -> PromptEffect:
    """As `PromptBaker.effect`, for two models in evaluation mode, as after merging or after several prompts."""
    texts = _sample(original, questions, samples, max_new_tokens, seed)
    before, after = partial(read_continuations, original), partial(read_continuations, baked)
    return prompt_effect(before, before, after, questions, texts, seed)


def _sample(
    model: nn.Module, questions: PromptedQuestions, samples: int, length: int, seed: int
) -> list[list[list[int]]]:
    seeds = (stream(seed, "sample", s) for s in range(samples))
    return [sample_continuations(model, questions.prompted, max_new_tokens=length, seed=one) for one in seeds]


def bake_in_turn(
    model: nn.Module,
    prompts: Sequence[PromptedQuestions],
    config: PromptBakingConfig,
    folder: Path | str,
    control: Control | None = None,
) -> Iterator[dict]:
    """Sequential baking: each prompt into the weights that hold the ones before it; `model` ends with all of them.

    Yields the records of `PromptBaker.bake` with `prompt`, its number. Resumable: every prompt has its own checkpoints
    below `folder`, and a finished one is merged again from its last; `model` must come as it came the first time.
    """
    for number, questions in enumerate(prompts):
        baker = PromptBaker(model, questions, replace(config, seed=stream(config.seed, "prompt", number)))
        checkpointer = Checkpointer(Path(folder) / f"prompt-{number}", every_steps=config.evaluate_every)
        for record in baker.bake(checkpointer, control):
            yield {"prompt": number, **record}
        model = baker.merge()
