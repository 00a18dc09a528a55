"""Small HTML tables for notebooks and reports, and numbers as people read them. Every text is escaped."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OPERATORS = {">=": "≥", "<=": "≤"}


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Table of dicts with equal keys, ordered by `columns`; numbers stand right, empty columns are left out."""
    if not rows:
        return "<p>no rows</p>"
    names = [name for name in columns or rows[0] if any(row.get(name) != "" for row in rows)]
    numeric = {name for name in names if all(is_number(row.get(name)) for row in rows)}
    heads = (f"<th{' class=number' * (name in numeric)}>{_text(name.replace('_', ' '))}</th>" for name in names)
    lines = ("<tr>" + "".join(_cell(row.get(name)) for name in names) + "</tr>" for row in rows)
    return f'<table class="forge"><thead><tr>{"".join(heads)}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def pairs(items: Iterable[Sequence[Any]]) -> str:
    """Table of (name, value) pairs."""
    lines = (f"<tr><th>{_text(str(name).replace('_', ' '))}</th>{_cell(value)}</tr>" for name, value in items)
    return f'<table class="forge pairs"><tbody>{"".join(lines)}</tbody></table>'


def gate(payload: Mapping[str, Any]) -> str:
    """A published gate: its name with the verdict, one row a check, the advice where it failed."""
    word = "passed" if payload["passed"] else "failed"
    advice = f"<p>{_text(payload['advice'])}</p>" if payload["advice"] and not payload["passed"] else ""
    title = f'<p><strong>{_text(payload["name"])}</strong> <span class="{word}">{word}</span></p>'
    return f'<div class="gate {word}">{title}{table([gate_row(row) for row in payload["rows"]])}{advice}</div>'


def gate_text(payload: Mapping[str, Any]) -> str:
    """The same table for a terminal."""
    lines = [f"{payload['name']}: {'passed' if payload['passed'] else 'failed'}"]
    for row in payload["rows"]:
        lines.append("  " + "  ".join(f"{name} {value}" for name, value in gate_row(row).items() if value))
    return "\n".join(lines)


def gate_row(row: Mapping[str, Any]) -> dict[str, str]:
    """One check of a gate as words; no control and no interval are empty."""
    low_high = [number(bound) for bound in row.get("interval") or ()]
    return {
        "check": row["name"],
        "measured": f"{number(row['measured'])} {row.get('unit') or ''}".strip(),
        "needed": f"{OPERATORS.get(row['op'], row['op'])} {number(row['threshold'])}",
        "interval": " to ".join(low_high),
        "control": "; ".join(f"{name} {number(value)}" for name, value in (row.get("control") or {}).items()),
        "verdict": row["verdict"],
        "note": row.get("note") or "",
    }


def number(value: Any) -> str:
    """Four significant digits, thousands grouped; None, which was not measured, reads "not run"."""
    if value is None:
        return "not run"
    if not is_number(value):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def is_number(value: Any) -> bool:
    """Whether a value is a number; True and False are words."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    text = ", ".join(map(number, value)) if isinstance(value, list | tuple) else number(value)
    css = "number" if is_number(value) else text if text in ("passed", "failed", "not run") else ""
    return f'<td class="{css}">{_text(text)}</td>' if css else f"<td>{_text(text)}</td>"


def _text(value: Any) -> str:
    return html.escape(str(value), quote=False)
