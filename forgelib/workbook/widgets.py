"""A slider that moves a gate's threshold while the verdict follows, and its static twin for reports."""

from collections.abc import Mapping, Sequence
from typing import Any

from forgelib.core.gates import Check
from forgelib.workbook.publish import publish
from forgelib.workbook.tables import OPERATORS, number, table


def threshold_table(measured: Mapping[str, float], thresholds: Sequence[float], op: str = ">") -> str:
    """The slider's static twin: one row a threshold, one verdict a measurement, as HTML."""
    rows = [
        {"threshold": number(limit), **{name: verdict(value, limit, op) for name, value in measured.items()}}
        for limit in thresholds
    ]
    return table(rows)


def verdict(value: float | None, threshold: float, op: str = ">") -> str:
    """passed, failed, or not run where nothing was measured: what a gate's check would say."""
    return Check("", value, threshold, op).verdict


def threshold_slider(
    measured: Mapping[str, float], threshold: float, low: float, high: float, steps: int = 4, op: str = ">"
) -> None:
    """Show a slider from `low` to `high` over the measurements, then the static twin over `steps` + 1 even thresholds.
    `op` is the gate's: >, >=, < or <=.

    The gate itself keeps the threshold it was given; this only shows how far the verdict is from turning.
    """
    import ipywidgets
    from IPython.display import display

    slider = ipywidgets.FloatSlider(threshold, min=low, max=high, step=(high - low) / 100, description="threshold")
    live = ipywidgets.HTML(_live(measured, threshold, op))
    slider.observe(lambda change: setattr(live, "value", _live(measured, change["new"], op)), names="value")
    display(ipywidgets.VBox([slider, live]))
    limits = sorted({round(low + (high - low) * n / steps, 10) for n in range(steps + 1)} | {threshold})
    publish("twin", {"of": "threshold_slider"}, threshold_table(measured, limits, op))


def _live(measured: Mapping[str, float], threshold: float, op: str) -> str:
    rows: list[dict[str, Any]] = [
        {
            "measurement": name,
            "measured": number(value),
            "needed": f"{OPERATORS.get(op, op)} {number(threshold)}",
            "verdict": verdict(value, threshold, op),
        }
        for name, value in measured.items()
    ]
    return f"<div>{table(rows)}<p>Move the slider: the verdict follows, the gate does not.</p></div>"
