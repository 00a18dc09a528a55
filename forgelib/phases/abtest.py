"""The A/B test: one model without thoughts (A) and with them (B) on the same problems, over several rounds.

    result = ab_test(model, tokenizer, rows, words=words, config=ABConfig(seed=0))
    result.as_dict()["reasoning_accuracy"], result.winner, result.helped

The defaults are METHOD's (Phase 3, A/B harness): 100 samples, 3 rounds, thoughts of at most 64 tokens. A round has its
own problems, as far as there are enough, and its own thoughts. All is paired by problem: t-test, McNemar, bootstrap.
There is a winner only where the effect exceeds the improvement threshold *and* chance does not explain it; else the
verdict is "no effect shown".

Thoughts that turned a wrong answer right become rows to bake. Their answers were checked, their lines were not: that a
model is right after a thought does not make the thought true (`phases.antitheater`). Bake none of what you measure on.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from torch import nn

from forgelib.core.rng import stream
from forgelib.data import ReasoningRow, Vocabulary
from forgelib.evaluate import bootstrap_interval
from forgelib.evaluate.accuracy import same_text
from forgelib.evaluate.paired import mcnemar, paired_t_test
from forgelib.evaluate.text_thinker import as_thinker
from forgelib.evaluate.theater import agreement
from forgelib.evaluate.thinker import Ids, Thinker, check_rows

WITH, WITHOUT, NEITHER = "thoughts", "baseline", "no effect shown"


@dataclass(frozen=True)
class ABConfig:
    """samples: problems of a round; thoughts: sampled of each problem, the first answers, all of them tell coherence;
    improvement: what the effect must exceed for a winner, a share (ours: the ablation's two points); alpha: of both
    tests, two-sided."""

    seed: int
    samples: int = 100
    rounds: int = 3
    thoughts: int = 4
    temperature: float = 1.0
    improvement: float = 0.02
    alpha: float = 0.05

    def __post_init__(self):
        if self.samples < 2 or self.rounds < 3:
            raise ValueError(f"an A/B test has at least 2 samples a round and 3 rounds: {self}")
        if self.thoughts < 2 or not self.temperature > 0:
            raise ValueError(f"coherence needs thoughts >= 2 that differ (temperature above 0): {self}")
        if not (0 <= self.improvement < 1 and 0 < self.alpha < 1):
            raise ValueError(f"improvement must be a share from 0 to 1, alpha between 0 and 1: {self}")


@dataclass(frozen=True)
class Round:
    """One round: shares right, well-formed thoughts, agreement of the thoughts' answers; n problems."""

    n: int
    reasoning_accuracy: float
    baseline_accuracy: float
    well_formed: float
    coherence: float


@dataclass(frozen=True)
class ABResult:
    """What came out. Accuracies, effect and tests count each of the n_problems distinct problems once (its mean over
    the rounds it was in; for McNemar its first round).

    gained, lost: problems right only with, only without thoughts. trace_quality: mean of the share of well-formed
    thoughts and of their coherence (ours; METHOD names the metric, not its parts). helped: rows for baking.
    """

    reasoning_accuracy: float
    baseline_accuracy: float
    effect: float
    effect_interval: tuple[float, float]
    t: float
    t_p: float
    gained: int
    lost: int
    mcnemar_p: float
    well_formed: float
    coherence: float
    trace_quality: float
    winner: str
    n_problems: int
    rounds: list[Round]
    helped: list[ReasoningRow] = field(repr=False)

    def as_dict(self) -> dict:
        """Plain values for a record or a report; of `helped` only how many."""
        return {**asdict(replace(self, helped=[])), "helped": len(self.helped)}


@dataclass(frozen=True)
class _Played:
    """A round as it was played: problems [N], right with and without [N], traces that helped."""

    problems: np.ndarray
    with_thought: np.ndarray
    without: np.ndarray
    summary: Round
    helped: list[ReasoningRow]


def ab_test(
    model: Thinker | nn.Module,
    tokenizer,
    rows: Sequence[ReasoningRow],
    *,
    words: Vocabulary,
    config: ABConfig,
    baseline: Thinker | nn.Module | None = None,
    baseline_tokenizer=None,
    same: Callable[[str, str], bool] = same_text,
    progress: Callable[[int, int], object] = lambda *_: None,
    **options,
) -> ABResult:
    """Compare answers after a sampled thought with answers without one.

    Args:
        model, baseline: Thinkers, or causal LMs, which become TextThinkers with `options` (max_thought_tokens, 64;
            max_answer_tokens; batch_size). baseline: another model that answers without thoughts; None: the same one.
        rows: of a dataset, `evaluate.thinker.questions(examples)` with `same=same_number` (GSM8K, SVAMP); or reasoning
            rows as they are.
        progress: called with (rounds played, rounds).
    Raises ValueError before any work for too few rows, and for a row whose answer is missing or cannot be compared.
    """
    check_rows(rows, config.samples, same)
    thinker = as_thinker(model, tokenizer, words, **options)
    plainly = {**options, "at_once": False}  # a model from before baking has one way of being asked
    other = thinker if baseline is None else as_thinker(baseline, baseline_tokenizer or tokenizer, words, **plainly)
    order = np.random.default_rng(stream(config.seed, "A/B problems")).permutation(len(rows))
    played = []
    for i in range(config.rounds):
        problems = order[(i * config.samples + np.arange(config.samples)) % len(rows)]
        played.append(_play(thinker, other, rows, problems, words, config, same, i))
        progress(i + 1, config.rounds)
    return _result(played, config)


def _play(
    thinker: Thinker,
    other: Thinker,
    rows: Sequence[ReasoningRow],
    problems: np.ndarray,
    words: Vocabulary,
    config: ABConfig,
    same: Callable[[str, str], bool],
    number: int,
) -> _Played:
    k, asked = config.thoughts, [rows[i] for i in problems]
    prompts, seed = [row.prompt for row in asked], stream(config.seed, "A/B thoughts", number)
    thoughts = thinker.think(prompts, n=k, seed=seed, temperature=config.temperature)
    repeated = [row for row in asked for _ in range(k)]
    answers = thinker.answer([row.prompt for row in repeated], [t for some in thoughts for t in some])
    right = np.array([same(a, row.answer) for a, row in zip(answers, repeated, strict=True)]).reshape(-1, k)
    plain = other.answer(prompts, [None] * len(prompts))
    without = np.array([same(a, row.answer) for a, row in zip(plain, asked, strict=True)])
    formed = np.array([[_well_formed(thinker, words, t) for t in some] for some in thoughts])
    coherence = agreement([answers[i : i + k] for i in range(0, len(answers), k)])
    summary = Round(
        len(asked), float(right[:, 0].mean()), float(without.mean()), float(formed.mean()), float(coherence.mean())
    )
    turned = right & formed & ~without[:, None]
    helped = [_baking_row(thinker, asked[i], thoughts[i][j]) for i, j in zip(*turned.nonzero(), strict=True)]
    return _Played(problems, right[:, 0], without, summary, helped)


def _well_formed(thinker: Thinker, words: Vocabulary, thought: Ids) -> bool:
    """Whether the thought is one well-formed, closed thought with something in it."""
    read = words.read(thinker.text(thought))
    return bool(read.inside and read.inside.strip() and not read.problems and not read.answer)


def _baking_row(thinker: Thinker, row: ReasoningRow, thought: Ids) -> ReasoningRow:
    """The row with the model's own trace; verified, because its answer was compared with the reference."""
    return replace(
        row, reasoning=thinker.text(thought), source=f"own thought that helped ({row.source})", verified=True
    )


def _result(played: list[_Played], config: ABConfig) -> ABResult:
    """Everything by distinct problem, so that one that came up in several rounds counts once."""
    problems = np.concatenate([one.problems for one in played])
    with_all, without_all = (np.concatenate([getattr(p, n) for p in played]) for n in ("with_thought", "without"))
    distinct, first, place = np.unique(problems, return_index=True, return_inverse=True)
    times = np.bincount(place)
    with_thought, without = (np.bincount(place, right) / times for right in (with_all, without_all))
    t, t_p = paired_t_test(with_thought, without)
    gained, lost, mcnemar_p = mcnemar(with_all[first], without_all[first])
    difference = with_thought - without
    interval = bootstrap_interval(np.mean, difference, seed=stream(config.seed, "A/B bootstrap"))
    effect, rounds = float(difference.mean()), [one.summary for one in played]
    formed, coherence = (float(np.mean([getattr(r, name) for r in rounds])) for name in ("well_formed", "coherence"))
    return ABResult(
        reasoning_accuracy=float(with_thought.mean()),
        baseline_accuracy=float(without.mean()),
        effect=effect,
        effect_interval=interval,
        t=t,
        t_p=t_p,
        gained=gained,
        lost=lost,
        mcnemar_p=mcnemar_p,
        well_formed=formed,
        coherence=coherence,
        trace_quality=(formed + coherence) / 2,
        winner=_winner(effect, interval, max(t_p, mcnemar_p), config),
        n_problems=len(distinct),
        rounds=rounds,
        helped=list({(row.prompt, row.reasoning): row for one in played for row in one.helped}.values()),
    )


def _winner(effect: float, interval: tuple[float, float], p: float, config: ABConfig) -> str:
    """A side only where the effect exceeds the threshold, its interval leaves out 0, and both tests agree."""
    if abs(effect) <= config.improvement or p >= config.alpha or interval[0] <= 0 <= interval[1]:
        return NEITHER
    return WITH if effect > 0 else WITHOUT
