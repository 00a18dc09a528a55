"""Gates: named checks of measured numbers against thresholds that were fixed beforehand."""

import math
import operator
from dataclasses import dataclass, field

OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclass(frozen=True)
class Check:
    """One number and what is asked of it.

    measured None means "not run" and never passes, and so does a number that is not finite. interval: 95% bounds of
    the measurement. control: what the same measurement gives where nothing should be found, label -> value.
    """

    name: str
    measured: float | None
    threshold: float
    op: str = ">"
    interval: tuple[float, float] | None = None
    unit: str = ""
    control: dict[str, float] | None = None
    note: str = ""

    def __post_init__(self):
        if self.op not in OPERATORS:
            raise ValueError(f"check '{self.name}': op = {self.op!r}, must be one of {', '.join(OPERATORS)}")

    @property
    def passed(self) -> bool:
        """Whether something finite was measured and keeps its threshold."""
        if self.measured is None or not math.isfinite(self.measured):
            return False
        return bool(OPERATORS[self.op](self.measured, self.threshold))

    @property
    def verdict(self) -> str:
        """passed, failed or not run."""
        return "not run" if self.measured is None else "passed" if self.passed else "failed"

    def row(self) -> dict:
        """The check as strict JSON, for tables and manifests; what is not finite as "nan", "inf", "-inf"."""
        return {
            "name": self.name,
            "measured": _plain(self.measured),
            "op": self.op,
            "threshold": _plain(self.threshold),
            "interval": None if self.interval is None else [_plain(bound) for bound in self.interval],
            "unit": self.unit,
            "control": {label: _plain(value) for label, value in (self.control or {}).items()},
            "note": self.note,
            "passed": self.passed,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Gate:
    """Checks that must all pass. advice says what to try when they do not."""

    name: str
    checks: list[Check] = field(default_factory=list)
    advice: str = ""

    @property
    def passed(self) -> bool:
        """True when there is at least one check and all passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def rows(self) -> list[dict]:
        """One plain dict per check."""
        return [check.row() for check in self.checks]

    def verdict(self) -> dict:
        """The gate as plain values, for a manifest."""
        return {"gate": self.name, "passed": self.passed, "checks": self.rows()}

    def text(self) -> str:
        """The table for a terminal or an error."""
        lines = [f"{self.name}: {'passed' if self.passed else 'failed'}"]
        for check in self.checks:
            measured = "not run" if check.measured is None else f"{check.measured:.4g}{check.unit}"
            bounds = "" if check.interval is None else f" [{check.interval[0]:.4g}, {check.interval[1]:.4g}]"
            controls = "".join(f", {label} {value:.4g}" for label, value in (check.control or {}).items())
            wanted = f"needed {check.op} {check.threshold:.4g}"
            lines.append(
                f"  {check.verdict:8} {check.name}: {measured}{bounds} ({wanted}{controls}) {check.note}".rstrip()
            )
        return "\n".join(lines)

    def enforce(self, on_failure: str = "raise") -> bool:
        """True when passed. A failed gate raises GateFailed, or with on_failure="record" returns False."""
        if on_failure not in ("raise", "record"):
            raise ValueError(f"on_failure = {on_failure!r}: must be raise or record")
        if not self.passed and on_failure == "raise":
            raise GateFailed(self)
        return self.passed


def _plain(value: float | None) -> float | str | None:
    if value is None or isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else str(float(value))


class GateFailed(RuntimeError):
    """A gate was not passed; the text holds its table and what to try next."""

    def __init__(self, gate: Gate):
        self.gate = gate
        super().__init__(gate.text() + (f"\nWhat to try: {gate.advice}" if gate.advice else ""))
