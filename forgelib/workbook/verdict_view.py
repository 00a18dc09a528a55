"""A verdict of the anti-theater trial as bars and tables, for notebook 32 and for the dashboard. Loads no torch."""

import html
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from forgelib.workbook import tables

if TYPE_CHECKING:
    from forgelib.evaluate.verdict import Measured, Verdict

#: The tests whose thresholds can be moved.
TESTS = ("divergence", "ablation", "correlation", "causal_use")


def verdict_html(verdict: "Verdict") -> str:
    """The outcome, a bar for each test with a mark at its threshold, and the gate's table, as HTML."""
    bars = "".join(_bar(name, getattr(verdict.overall, name), getattr(verdict.thresholds, name)) for name in TESTS)
    gate = verdict.gate()
    payload = {"name": gate.name, "passed": gate.passed, "advice": gate.advice, "rows": gate.rows()}
    return f"<div><p><b>{html.escape(verdict.outcome)}</b></p>{bars}{tables.gate(payload)}</div>"


def _bar(name: str, found: "Measured", threshold: float) -> str:
    value = 0.0 if found.value is None else max(0.0, min(1.0, found.value))
    colour = "#2a7f62" if found.value is not None and found.value > threshold else "#b3423a"
    told, mark = found.note if found.value is None else f"{found.value:.3f}", 100 * max(0.0, min(1.0, threshold))
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:2px 8px;align-items:center">'
        f'<span style="width:8em">{name.replace("_", " ")}</span>'
        '<span style="position:relative;width:20em;max-width:100%;height:14px;background:#8883;display:inline-block">'
        f'<span style="position:absolute;height:14px;width:{100 * value:.1f}%;background:{colour}"></span>'
        f'<span style="position:absolute;left:{mark:.1f}%;height:14px;border-left:2px solid"></span>'
        f"</span><span>{html.escape(told)} (must exceed {threshold:.2f})</span></div>"
    )


def turning_rows(checks: Iterable[Mapping[str, Any]]) -> list[dict]:
    """The sliders' static twin: up to which threshold each of a gate's rows would pass."""
    return [
        {
            "check": row["name"],
            "threshold": row["threshold"],
            "verdict": row["verdict"],
            "passes up to": "not run" if row["measured"] is None else round(row["measured"], 3),
        }
        for row in checks
    ]
