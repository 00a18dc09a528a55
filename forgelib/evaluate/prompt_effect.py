"""How much of a prompt's effect a model has without the prompt (prompt baking, 2409.13697), with intervals by question.

Shape legend: Q questions, S sampled continuations of each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from .continuations import Ids, PromptedQuestions, Read, kl_per_continuation, log_likelihoods
from .intervals import bootstrap_interval

#: (contexts, continuations) -> Read: a model as the comparison sees it.
Reader = Callable[[Sequence[Ids], Sequence[Ids]], Read]
Interval = tuple[float, float]


@dataclass(frozen=True)
class PromptEffect:
    """How much of a prompt's effect a model has without the prompt; intervals (95%) are bootstrapped by question.

    kl_before, kl_after: KL from the prompted model, nats per continuation, of the bare model and of the baked one.
    share_removed: 1 - kl_after / kl_before. r2_before, r2: squared correlation of the continuations' log-likelihoods
    with those of the prompted model; r2_identity: the same about the line y = x; r2_per_token: of the means per token,
    for where lengths differ (long texts are unlikely under any model, which alone makes log-likelihoods agree).
    """

    kl_before: float
    kl_before_interval: Interval
    kl_after: float
    kl_after_interval: Interval
    share_removed: float
    share_removed_interval: Interval
    r2_before: float
    r2: float
    r2_interval: Interval
    r2_identity: float
    r2_per_token: float
    n_questions: int
    n_continuations: int
    n_tokens: int


@dataclass(frozen=True)
class Comparison:
    """Teacher and student on S sampled continuations of each of Q questions, all arrays [Q, S].

    kl: nats per continuation; teacher, student: log-likelihoods of the continuations in nats; n_tokens: their lengths.
    """

    kl: np.ndarray
    teacher: np.ndarray
    student: np.ndarray
    n_tokens: np.ndarray


@torch.no_grad()
def compare(
    teacher: Reader,
    student: Reader,
    questions: PromptedQuestions,
    continuations: Sequence[Sequence[Ids]],
    batch_size: int = 32,
) -> Comparison:
    """The teacher reads continuations[s][q] after the prompted question q, the student after the bare one."""
    rows = [(q, s) for q in range(len(questions)) for s in range(len(continuations))]
    found = []
    for first in range(0, len(rows), batch_size):
        some = rows[first : first + batch_size]
        texts = [continuations[s][q] for q, s in some]
        prompted = teacher([questions.prompted[q] for q, _ in some], texts)
        bare = student([questions.bare[q] for q, _ in some], texts)
        n_tokens = prompted.real.sum(1)
        columns = kl_per_continuation(prompted, bare), log_likelihoods(prompted), log_likelihoods(bare), n_tokens
        found.append(torch.stack([column.double() for column in columns], 1).cpu())
    table = torch.cat(found).view(len(questions), len(continuations), 4).numpy()
    return Comparison(*(table[..., i] for i in range(4)))


def r_squared(x: np.ndarray, y: np.ndarray) -> float:
    """Squared Pearson correlation of two arrays of one shape, 0 where one of them does not vary."""
    x, y = np.ravel(x) - np.mean(x), np.ravel(y) - np.mean(y)
    scale = float(x @ x) * float(y @ y)
    return float(x @ y) ** 2 / scale if scale else 0.0


def identity_r_squared(x: np.ndarray, y: np.ndarray) -> float:
    """1 - sum (y - x)^2 / sum (x - mean x)^2: how much of x is y itself; an offset counts against it."""
    spread = float(np.square(x - np.mean(x)).sum())
    return 1.0 - float(np.square(x - y).sum()) / spread if spread else 0.0


def prompt_effect(
    teacher: Reader, bare: Reader, baked: Reader, questions: PromptedQuestions, texts: list, seed: int
) -> PromptEffect:
    """Compare `bare` (no prompt, not baked) and `baked` with the prompted teacher on texts [S][Q], sampled from it.

    Raises ValueError where the prompt changes nothing, because no share of that can be kept.
    """
    before, after = compare(teacher, bare, questions, texts), compare(teacher, baked, questions, texts)
    if not before.kl.any():
        raise ValueError("on these questions the prompt changes nothing at all: there is no effect to keep")

    def mean(kl: np.ndarray) -> float:
        return float(kl.mean())

    def share(kl: np.ndarray, start: np.ndarray) -> float:
        return 1 - float(kl.mean()) / float(start.mean())

    interval = partial(bootstrap_interval, seed=seed)
    return PromptEffect(
        kl_before=mean(before.kl),
        kl_before_interval=interval(mean, before.kl),
        kl_after=mean(after.kl),
        kl_after_interval=interval(mean, after.kl),
        share_removed=share(after.kl, before.kl),
        share_removed_interval=interval(share, after.kl, before.kl),
        r2_before=r_squared(before.teacher, before.student),
        r2=r_squared(after.teacher, after.student),
        r2_interval=interval(r_squared, after.teacher, after.student),
        r2_identity=identity_r_squared(after.teacher, after.student),
        r2_per_token=r_squared(after.teacher / after.n_tokens, after.student / after.n_tokens),
        n_questions=len(questions),
        n_continuations=after.kl.size,
        n_tokens=int(after.n_tokens.sum()),
    )
