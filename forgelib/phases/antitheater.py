"""Anti-theater: do a model's thoughts do anything, or do they only look like it?

    verdict = validate(model, tokenizer, rows, words=words, reference=champion)
    verdict.gate().enforce()

Every number stands beside controls that take the thought's content away and leave its looks: the thought deleted, its
tokens shuffled, another problem's thought of the same strategy and of like length, as many tokens of filler. What each
test can be fooled by, and what is done about it:

- *ablation*: a model whose path without thoughts was harmed gains by any thought. So the gain is over the better of
  that path and a frozen champion's, and over the best of the spoilt thoughts, which also keep the thought's length.
- *correlation*: strategies of different difficulty make idle thoughts look coherent where they are right. So both are
  taken about their strategy's mean, and each strategy is held to the threshold. With fewer than MIN_ERRORS problems on
  which a thought went wrong, nothing can be said: "too few errors to measure" is no pass, and the gate stays shut.
- *causal use*: a swapped thought of another length tells the answer apart by its length. So the donor is the nearest in
  length.
- *divergence* passes for anything; it is METHOD's format check, kept as given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from forgelib.core.rng import stream
from forgelib.data import ReasoningRow, Vocabulary
from forgelib.evaluate import theater
from forgelib.evaluate.accuracy import same_text
from forgelib.evaluate.intervals import percentile_interval, resampled_sums
from forgelib.evaluate.text_thinker import as_thinker
from forgelib.evaluate.thinker import Ids, Thinker, check_rows
from forgelib.evaluate.verdict import TOO_FEW, Evidence, Findings, Measured, Thresholds, Verdict

#: A correlation needs so many problems with a thought that went wrong, and as many with one that did not.
MIN_ERRORS = 10
SPOILT = ("deleted", "shuffled", "swapped", "filler")
#: (what is being done, steps done, steps in all)
Progress = Callable[[str, int, int], object]


@dataclass(frozen=True)
class TheaterConfig:
    """How much is measured. n_problems: for the ablation (METHOD: at least 1,000); n_thought_problems: those of them
    with `thoughts` thoughts each (METHOD: 4-8), for correlation and causal use; n_samples: those of them for the
    divergence (METHOD: 100); temperature: of those thoughts (METHOD: 1.0; the ablation's are greedy, as answers are).
    """

    seed: int
    n_problems: int = 1000
    n_samples: int = 100
    n_thought_problems: int = 400
    thoughts: int = 6
    temperature: float = 1.0
    n_resamples: int = 1000
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self):
        if not 1 <= self.n_samples <= self.n_thought_problems <= self.n_problems or self.n_resamples < 1:
            raise ValueError(f"must be 1 <= n_samples <= n_thought_problems <= n_problems, n_resamples >= 1: {self}")
        if self.thoughts < 2 or not self.temperature > 0:
            raise ValueError(f"agreement needs thoughts >= 2 that differ (temperature above 0): {self}")


def validate(
    model: Thinker | nn.Module,
    tokenizer,
    rows: Sequence[ReasoningRow],
    *,
    words: Vocabulary,
    reference: Thinker | nn.Module | None = None,
    reference_tokenizer=None,
    config: TheaterConfig,
    same: Callable[[str, str], bool] = same_text,
    progress: Progress = lambda *_: None,
    **options,
) -> Verdict:
    """Put a model's thoughts to the four tests on held-out rows.

    Args:
        model, reference: Thinkers, or causal LMs, which become TextThinkers with `options` (max_thought_tokens,
            batch_size, ...). reference: the frozen champion; without one the ablation says so in its note.
            reference_tokenizer: where it is not `tokenizer`; it need not have the vocabulary.
        same: (answer, reference answer) -> right or wrong; `evaluate.final_answer.same_number` for word problems.
    Raises ValueError before any work: no or too few rows, a row without an answer, a strategy with a single problem.
    What is held in memory is token ids and texts of n_problems rows; the model sees one batch at a time.
    """
    check_rows(rows, config.n_problems, same)
    chosen = theater.spread_over([row.strategy for row in rows], config.n_problems, stream(config.seed, "problems"))
    rows = [rows[i] for i in chosen]
    strategies = [row.strategy for row in rows]
    looked = [strategies[i] for i in theater.spread_over(strategies, config.n_thought_problems, config.seed)]
    if lonely := [name for name in dict.fromkeys(strategies) if looked.count(name) < 2]:
        raise ValueError(
            f"strategy {lonely[0]} has {strategies.count(lonely[0])} problems, {looked.count(lonely[0])} of them with "
            "several thoughts: it needs two, so that a thought can be swapped with another problem's"
        )
    thinker = as_thinker(model, tokenizer, words, **options)
    plainly = {**options, "at_once": False}  # a model from before baking has one way of being asked
    champion = None if reference is None else as_thinker(reference, reference_tokenizer or tokenizer, words, **plainly)
    trial = _Trial(thinker, champion, rows, strategies, config, same, progress)
    return trial.verdict()


class _Trial:
    """One run of the tests: n problems, P of them with K thoughts each, R resamples, S strategies."""

    def __init__(self, thinker, champion, rows, strategies, config, same, progress):
        self.thinker, self.champion, self.rows, self.strategies = thinker, champion, rows, strategies
        self.config, self.same = config, same
        self._progress, self._done = progress, 0
        self.prompts = [row.prompt for row in rows]

    def _seed(self, *names: object) -> int:
        return stream(self.config.seed, "anti-theater", *names)

    def _step(self, what: str) -> None:
        self._done += 1
        self._progress(what, self._done, 10 + 2 * len(SPOILT) + (self.champion is not None))

    def spoil(self, thoughts: list[Ids], strategies: list[str], name: str) -> dict[str, list[Ids]]:
        """The four controls of thoughts [N]."""
        given = theater.donors(thoughts, strategies, self._seed("swapped", name))
        return {
            "deleted": [()] * len(thoughts),
            "shuffled": theater.shuffled_tokens(thoughts, self._seed("shuffled", name)),
            "swapped": [thoughts[i] for i in given],
            "filler": [self.thinker.filler(len(thought)) for thought in thoughts],
        }

    def right(self, answers: Sequence[str], problems: Sequence[int]) -> np.ndarray:
        return np.array([self.same(a, self.rows[i].answer) for a, i in zip(answers, problems, strict=True)])

    def verdict(self) -> Verdict:
        names = dict.fromkeys(self.strategies)
        thoughts, answers, correct = self.ablated()
        with_thoughts = theater.spread_over(
            self.strategies, self.config.n_thought_problems, self._seed("problems with thoughts")
        )
        variation = self.variation(with_thoughts, thoughts, answers)
        with_thoughts, sampled, answered = self.sampled(with_thoughts)
        unlooked = np.full(len(with_thoughts) - len(variation["swapped"]), np.nan)
        variation = {name: np.concatenate([found, unlooked]) for name, found in variation.items()}
        coherence, utility = self.agreed(with_thoughts, sampled, answered)
        distances = self.distances(sampled, with_thoughts)
        judge = _Judge(self, correct, with_thoughts, variation, coherence, utility, distances)
        by_strategy = {name: judge.findings([name]) for name in names}
        overall = judge.findings(list(names))
        evidence = Evidence(
            self.prompts,
            self.strategies,
            correct,
            {name: [self.thinker.text(t) for t in some] for name, some in thoughts.items() if name != "without"},
            answers,
            with_thoughts,
            coherence["own"],
            utility["own"],
            variation["swapped"],
        )
        return Verdict(overall, by_strategy, self.config.thresholds, evidence)

    def ablated(self) -> tuple[dict, dict, dict]:
        """Thoughts, answers and right or wrong [n] of every condition: own (greedy), without, champion, the spoilt."""
        drawn = self.thinker.think(self.prompts, n=1, seed=self._seed("greedy"), temperature=0.0)
        own = [row[0] for row in drawn]
        self._step("greedy thoughts")
        thoughts = {"own": own, "without": [None] * len(own), **self.spoil(own, self.strategies, "greedy")}
        answers = {}
        for name, some in thoughts.items():
            answers[name] = self.thinker.answer(self.prompts, some)
            self._step(f"answers, {name}")
        if self.champion is not None:
            answers["champion"] = self.champion.answer(self.prompts, [None] * len(own))
            self._step("answers, champion")
        everyone = range(len(self.rows))
        return thoughts, answers, {name: self.right(some, everyone) for name, some in answers.items()}

    def variation(self, problems: np.ndarray, thoughts: dict, answers: dict) -> dict[str, np.ndarray]:
        """Total variation [P] of the answer distribution between the own thought and each spoilt one.

        Candidates: what was answered after the own and after the swapped thought, and the reference; all other answers
        together are one more. Few, because each costs a pass over prompt and thought.
        """
        prompts = [self.prompts[i] for i in problems]
        candidates = [
            list(dict.fromkeys(a for a in (self.rows[i].answer, answers["own"][i], answers["swapped"][i]) if a))
            for i in problems
        ]
        read = {}
        for name in ("own", *SPOILT):
            read[name] = self.thinker.log_probs(prompts, [thoughts[name][i] for i in problems], candidates)
            self._step(f"probabilities, {name}")
        return {
            name: np.array([theater.total_variation(p, q) for p, q in zip(read["own"], read[name], strict=True)])
            for name in SPOILT
        }

    def sampled(self, problems: np.ndarray) -> tuple[np.ndarray, list[list[Ids]], list[list[str]]]:
        """Problems, K thoughts of each, the answers after them: of the given problems, and then of all others of a
        strategy in which fewer than MIN_ERRORS of them went wrong."""
        thoughts, answers = self._sampled(problems, "sampled")
        wrong = [not self.right(some, [i] * len(some)).all() for i, some in zip(problems, answers, strict=True)]
        names = np.array(self.strategies)
        lacking = [n for n in dict.fromkeys(self.strategies) if sum(names[problems[wrong]] == n) < MIN_ERRORS]
        rest = np.setdiff1d(np.flatnonzero(np.isin(names, lacking)), problems)
        if len(rest):
            more = self._sampled(rest, "sampled of the rest")
            problems, thoughts, answers = np.concatenate([problems, rest]), thoughts + more[0], answers + more[1]
        self._step("sampled thoughts")
        return problems, thoughts, answers

    def _sampled(self, problems: np.ndarray, name: str) -> tuple[list[list[Ids]], list[list[str]]]:
        k, prompts = self.config.thoughts, [self.prompts[i] for i in problems]
        thoughts = self.thinker.think(prompts, n=k, seed=self._seed(name), temperature=self.config.temperature)
        flat = self.thinker.answer([p for p in prompts for _ in range(k)], [t for row in thoughts for t in row])
        return thoughts, [flat[i : i + k] for i in range(0, len(flat), k)]

    def agreed(
        self, problems: np.ndarray, sampled: list[list[Ids]], answered: list[list[str]]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Agreement and right or wrong [P, K] of sampled thoughts, own and spoilt."""
        k, prompts = self.config.thoughts, [self.prompts[i] for i in problems]
        flat, repeated = [t for row in sampled for t in row], [p for p in prompts for _ in range(k)]
        where = np.repeat(problems, k)
        # donors by problem: a problem's K swapped thoughts are the K thoughts of one other
        given = theater.donors(
            [row[0] for row in sampled], [self.strategies[i] for i in problems], self._seed("swapped", "sampled")
        )
        conditions = {
            "own": flat,
            "shuffled": theater.shuffled_tokens(flat, self._seed("shuffled", "sampled")),
            "swapped": [t for i in given for t in sampled[i]],
            "filler": [self.thinker.filler(len(t)) for t in flat],
        }
        coherence, utility = {}, {}
        for name, some in conditions.items():
            found = answered
            if name != "own":
                answers = self.thinker.answer(repeated, some)
                found = [answers[i : i + k] for i in range(0, len(answers), k)]
            coherence[name] = theater.agreement(found)
            utility[name] = self.right([a for row in found for a in row], where).reshape(-1, k).astype(float)
            self._step(f"agreement, {name}")
        return coherence, utility

    def distances(self, sampled: list[list[Ids]], problems: np.ndarray) -> dict[str, np.ndarray]:
        """Normalised edit distance to the greedy continuation, of a sampled thought of n_samples problems and of it
        spoilt; nan where the problem was not looked at, [P]."""
        strategies, own = [self.strategies[i] for i in problems], [row[0] for row in sampled]
        conditions = {"own": own, **self.spoil(own, strategies, "divergence")}
        looked = theater.spread_over(strategies, self.config.n_samples, self._seed("divergence"))
        plain = self.thinker.continuation([self.prompts[problems[i]] for i in looked])
        self._step("divergence")
        found = {name: np.full(len(problems), np.nan) for name in conditions}
        for name, some in conditions.items():
            found[name][looked] = [theater.edit_distance(some[i], p) for i, p in zip(looked, plain, strict=True)]
        return found


class _Judge:
    """From measured arrays to findings with intervals, over some of the strategies; resampled within each of them."""

    def __init__(self, trial: _Trial, correct, problems, variation, coherence, utility, distances):
        self.config, self.has_champion = trial.config, trial.champion is not None
        self.names = np.array(trial.strategies)
        self.some_names = self.names[problems]
        self.correct, self.variation, self.distance = correct, variation, distances
        self.moments = {name: theater.moments(coherence[name], utility[name]) for name in coherence}
        self.failed, self.solved = (utility["own"] < 1).any(1), (utility["own"] > 0).any(1)

    def _sums(self, values: np.ndarray, names: np.ndarray, strategy: str) -> tuple[np.ndarray, np.ndarray]:
        """Column sums of one strategy's rows of values [N, M]: as measured [M], and resampled [R, M]."""
        some = values[names == strategy]
        seed = stream(self.config.seed, "bootstrap", strategy)
        return some.sum(0), resampled_sums(some, self.config.n_resamples, seed)

    def _means(self, columns: dict[str, np.ndarray], names: np.ndarray, strategies: list[str]) -> tuple[dict, dict]:
        """Mean of each column over the strategies, as measured and resampled [R]."""
        values = np.stack([np.asarray(column, float) for column in columns.values()], 1)
        sums = [self._sums(values, names, strategy) for strategy in strategies]
        n = int(np.isin(names, strategies).sum())
        measured, drawn = (sum(pair[i] for pair in sums) / n for i in (0, 1))
        return dict(zip(columns, measured, strict=True)), dict(zip(columns, drawn.T, strict=True))

    def findings(self, strategies: list[str]) -> Findings:
        means, drawn = self._means(self.correct, self.names, strategies)
        n = int(np.isin(self.names, strategies).sum())
        paths = ["without", *["champion"] * self.has_champion]
        note = "" if self.has_champion else "no frozen champion was given"
        if n < 1000 and len(strategies) == len(set(self.names)):
            note += f"{'; ' * bool(note)}the source documents ask for at least 1,000 problems"
        return Findings(
            self._mean_of(self.distance, "own", strategies, skip_nan=True),
            _gain(means, drawn, paths, n, note),
            _gain(means, drawn, list(SPOILT), n, ""),
            *self._correlation(strategies),
            self._mean_of(self.variation, "swapped", strategies, skip_nan=True),
            {name: float(share) for name, share in means.items()},
        )

    def _mean_of(self, columns: dict, headline: str, strategies: list[str], skip_nan: bool = False) -> Measured:
        looked = np.isfinite(columns[headline]) if skip_nan else np.ones(len(self.some_names), bool)
        names = self.some_names[looked]
        strategies = [name for name in strategies if name in names]
        if not strategies:
            return Measured(None, note="no problem of this strategy was looked at")
        means, drawn = self._means({name: column[looked] for name, column in columns.items()}, names, strategies)
        controls = {name: float(value) for name, value in means.items() if name != headline}
        n = int(np.isin(names, strategies).sum())
        return Measured(float(means[headline]), _interval(drawn[headline], n), controls, n)

    def _correlation(self, strategies: list[str]) -> tuple[Measured, Measured]:
        """Pearson's r of agreement and right or wrong about the strategies' means, over those that have the errors, and
        how far it is above the best r of spoilt thoughts. (Deleted thoughts are all alike: their r is 0.)"""
        lacking = {name: self._lack(name) for name in strategies}
        measured = [name for name in strategies if not lacking[name]]
        note = "; ".join(f"{lack}: {name}" for name, lack in lacking.items() if lack)
        if not measured:
            return Measured(None, note=note), Measured(None, note=note)
        sums = {name: [self._sums(m, self.some_names, s) for s in measured] for name, m in self.moments.items()}
        found = {n: float(theater.correlation_within(np.stack([a for a, _ in pair]))) for n, pair in sums.items()}
        drawn = {n: theater.correlation_within(np.stack([b for _, b in pair], 1)) for n, pair in sums.items()}
        n = int(np.isin(self.some_names, measured).sum())
        together = np.stack([a for a, _ in sums["own"]]).sum(0)[None]
        controls = {name: r for name, r in found.items() if name != "own"}
        mixed = {"strategies mixed": float(theater.correlation_within(together))}
        spoilt = _gain(found, drawn, list(controls), n, note)
        return Measured(found["own"], percentile_interval(drawn["own"]), controls | mixed, n, note), spoilt

    def _lack(self, strategy: str) -> str:
        """What a strategy lacks for a correlation; "" for nothing."""
        mine = self.some_names == strategy
        if self.failed[mine].sum() < MIN_ERRORS:
            return TOO_FEW
        return "too few right answers to measure" * bool(self.solved[mine].sum() < MIN_ERRORS)


def _interval(drawn: np.ndarray, n: int) -> tuple[float, float]:
    """Bootstrap bounds; where all n problems are alike, which no resample can tell from certainty, up to 3 / n of
    further ones may be otherwise (the rule of three: Hanley and Lippman-Hand 1983), as far off as -1 and 1."""
    low, high = percentile_interval(drawn)
    if low < high:
        return low, high
    others = min(1.0, 3 / n)
    return low - others * (low + 1), high + others * (1 - high)


def _gain(means: dict, drawn: dict, others: list[str], n: int, note: str) -> Measured:
    """What own thoughts give above the best of the others, the best chosen anew in every resample."""
    best = np.max([drawn[name] for name in others], axis=0)
    controls = {f"over {name}": float(means["own"] - means[name]) for name in others}
    return Measured(min(controls.values()), _interval(drawn["own"] - best, n), controls, n, note)
