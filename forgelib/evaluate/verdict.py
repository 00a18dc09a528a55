"""The verdict on a model's thoughts: what was measured, beside its controls, against thresholds that can be moved.

| test | asks | must exceed |
|---|---|---|
| divergence | is a thought something else than what the model would write anyway? (anything passes) | 0.30 |
| ablation | are answers better with thoughts than without, by any path, and than with spoilt ones? | 2 points |
| correlation | do thoughts that agree on an answer lead to right ones, within a strategy? | 0.50 |
| causal use | does the answer change when the thought is another problem's? | 0.30 |

The thresholds are METHOD's (Phase 3, anti-theater).

Measuring is `phases.antitheater`; here nothing is measured, so a threshold can be moved and the verdict follows.
"""

from dataclasses import asdict, dataclass, field, replace

import numpy as np

from forgelib.core.gates import Check, Gate

#: Field of Findings, its label, field of Thresholds ("": 0), whether the lower bound is held to it. Correlation has to
#: exceed that of spoilt thoughts: an answer that only feels a thought's length agrees with itself where it is right.
_DIVERGENCE = ("divergence", "divergence", "divergence", False)
_TESTS = (
    ("ablation", "ablation", "ablation", True),
    ("over_controls", "ablation above spoilt thoughts", "ablation", True),
    ("correlation", "correlation", "correlation", False),
    ("correlation_over_controls", "correlation above spoilt thoughts", "", True),
    ("causal_use", "causal use", "causal_use", False),
)
TOO_FEW = "too few errors to measure"
ADVICE = (
    "see which control comes close: equal with spoilt thoughts, the answer does not read them; equal without one, the "
    "problems can be solved directly: take harder ones; too few errors, take harder problems or more of them. Then "
    "restore the last good checkpoint and train with thoughts that help"
)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Thresholds:
    """What each test must exceed (METHOD, Phase 3: anti-theater). ablation: a share, 0.02 is two points."""

    divergence: float = 0.30
    ablation: float = 0.02
    correlation: float = 0.50
    causal_use: float = 0.30

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not -1 <= value <= 1:
                raise ValueError(f"threshold {name} = {value}: must be a number between -1 and 1")


@dataclass(frozen=True)
class Measured:
    """A number with its 95% interval, what the same measurement gives for each control, and n problems behind it.

    value None: it could not be measured; note says why.
    """

    value: float | None
    interval: Interval | None = None
    controls: dict[str, float] = field(default_factory=dict)
    n: int = 0
    note: str = ""


@dataclass(frozen=True)
class Findings:
    """The tests on one set of problems.

    ablation: accuracy with thoughts above the better of the paths without (the model's own, the frozen champion's);
    over_controls: the same above the best of the spoilt thoughts; correlation_over_controls: r above the best r of the
    spoilt thoughts; accuracy: share right of each condition.
    """

    divergence: Measured
    ablation: Measured
    over_controls: Measured
    correlation: Measured
    correlation_over_controls: Measured
    causal_use: Measured
    accuracy: dict[str, float]


@dataclass(frozen=True)
class Evidence:
    """What the numbers were made from, for plots and a viewer. n problems, P of them with K thoughts.

    correct: condition -> bool [n]; thoughts, answers: condition -> texts [n]; problems: which of the n have K thoughts
    [P]; coherence, utility [P, K]; total_variation [P] between own and swapped thought.
    """

    prompts: list[str]
    strategies: list[str]
    correct: dict[str, np.ndarray]
    thoughts: dict[str, list[str]]
    answers: dict[str, list[str]]
    problems: np.ndarray
    coherence: np.ndarray
    utility: np.ndarray
    total_variation: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """Every test over all problems and in each strategy, beside the thresholds. Frozen: `under` gives another one."""

    overall: Findings
    by_strategy: dict[str, Findings]
    thresholds: Thresholds = Thresholds()
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    @property
    def passed(self) -> bool:
        """Whether every test passed, over all problems and in every strategy."""
        return self.gate().passed

    @property
    def outcome(self) -> str:
        """passed, failed, or TOO_FEW: nothing failed, but a correlation could not be measured. Only passed passes."""
        checks = self.gate().checks
        if all(check.passed for check in checks):
            return "passed"
        return "failed" if any(check.verdict == "failed" for check in checks) else TOO_FEW

    def under(self, thresholds: Thresholds) -> "Verdict":
        """The same measurements under other thresholds."""
        return replace(self, thresholds=thresholds)

    def gate(self) -> Gate:
        """All checks. Where there are several strategies, the weakest of each test is a check of its own: theater in
        one strategy is not made up for by another. What could not be measured is "not run" and does not pass."""
        overall = (self.overall, self.thresholds)
        checks = [_check(*overall, *_DIVERGENCE, ""), *_checks(*overall, "")]
        if len(self.by_strategy) > 1:
            rows = [_checks(found, self.thresholds, f", weakest: {name}") for name, found in self.by_strategy.items()]
            checks += [min(column, key=_margin) for column in zip(*rows, strict=True)]
        return Gate("anti-theater", checks, ADVICE)

    def table(self) -> list[dict]:
        """One row of plain rounded values for all problems together and for each strategy."""
        rows = {"all": self.overall, **self.by_strategy} if len(self.by_strategy) > 1 else self.by_strategy
        return [_row(name, found, self.thresholds) for name, found in rows.items()]

    def metrics(self) -> dict[str, float]:
        """METHOD's three numbers for the `rl/` records; one that could not be measured is left out."""
        values = {name: getattr(self.overall, name).value for name in ("divergence", "ablation", "correlation")}
        return {f"anti_theater_{name}": value for name, value in values.items() if value is not None}

    def as_dict(self) -> dict:
        """Everything but the evidence as plain values, for a manifest or a report."""
        return {
            "outcome": self.outcome,
            "thresholds": asdict(self.thresholds),
            "overall": asdict(self.overall),
            "by_strategy": {name: asdict(found) for name, found in self.by_strategy.items()},
            **self.gate().verdict(),
        }


def _checks(findings: Findings, thresholds: Thresholds, where: str) -> list[Check]:
    """What compares with a path or a control is held to the lower bound of its interval, the rest to its value."""
    return [_check(findings, thresholds, *test, where) for test in _TESTS]


def _check(findings: Findings, thresholds: Thresholds, name: str, label: str, limit: str, bound: bool, where: str):
    found: Measured = getattr(findings, name)
    measured, notes = found.value, [found.note]
    if bound and found.interval is not None:
        measured, notes = found.interval[0], [f"measured {found.value:.3f}, n = {found.n}", found.note]
    return Check(
        f"{label}{', lower bound' * bound}{where}",
        measured,
        getattr(thresholds, limit) if limit else 0.0,
        ">",
        found.interval,
        control=found.controls,
        note="; ".join(note for note in notes if note),
    )


def _margin(check: Check) -> tuple[int, float]:
    """What failed comes before what could not be measured, and that before what passed."""
    rank = ("failed", "not run", "passed").index(check.verdict)
    return rank, 0.0 if check.measured is None else check.measured - check.threshold


def _row(name: str, findings: Findings, thresholds: Thresholds) -> dict:
    passed = all(check.passed for check in _checks(findings, thresholds, ""))
    row = {"strategy": name, "problems": findings.ablation.n}
    for test in ("divergence", *(name for name, *_ in _TESTS)):
        found = getattr(findings, test)
        row[test] = found.note if found.value is None else round(found.value, 3)
        row[f"{test}_low"] = None if found.interval is None else round(found.interval[0], 3)
    return row | {f"accuracy_{k}": round(v, 3) for k, v in findings.accuracy.items()} | {"passed": passed}
