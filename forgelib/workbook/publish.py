"""What a notebook says about itself in a form that the runner and the report can read.

Each call shows a small table to the reader and stores the same facts, as JSON, in the cell's output under the mime type
MIME. The report lifts them out of the executed notebooks: gates to its top, sources and provenance to its tables.
"""

import html
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MIME = "application/vnd.forge+json"
SIGNS = {True: "passed", False: "failed", None: "not run"}


def publish(kind: str, payload: Mapping[str, Any], table: str = "", text: str = "") -> None:
    """Show `table` (HTML) or `text` in the notebook and store `payload` (JSON-able) as facts of this `kind`."""
    facts = json.loads(json.dumps({"kind": kind, **payload}), parse_constant=str)  # NaN is no JSON: kept as text
    bundle = {MIME: facts, "text/plain": text or f"{kind}: {dict(payload)}"}
    if table:
        bundle["text/html"] = table
    from IPython.display import display  # here, so that the command line reads published facts without IPython

    display(bundle, raw=True)


def gate(gate: Any) -> None:
    """Show a core.gates.Gate as a table of its checks. Call it before `gate.enforce(...)`: red is seen too."""
    rows = gate.rows()
    payload = {"name": gate.name, "passed": gate.passed, "advice": gate.advice, "rows": rows}
    publish("gate", payload, gate_table(payload), gate_text(payload))


def sources(rows: Iterable[Mapping[str, Any]]) -> None:
    """Show where each dataset's rows came from: one dict a dataset, the same keys in each, `source` among them."""
    rows = [dict(row) for row in rows]
    publish("sources", {"rows": rows}, table_of(rows))


def provenance(parameters: Any, **facts: Any) -> None:
    """Show what the run rests on: the resolved parameters and named facts (run key, code digest, device, parents)."""
    payload = {"notebook": parameters.NOTEBOOK, "parameters": parameters.model_dump(), "facts": facts}
    publish("provenance", payload, pairs_table({**facts, **payload["parameters"]}))


def rows(kind: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Show a table that belongs to the results: one dict a row, the same keys in each."""
    rows = [dict(row) for row in rows]
    publish(kind, {"rows": rows}, table_of(rows))


def artifact(artifact: Any) -> None:
    """Show a published core.artifacts.Artifact: name, folder, digest."""
    payload = {"name": artifact.name, "path": str(artifact.path), "digest": artifact.digest}
    publish("artifact", payload, pairs_table(payload))


def published(notebook: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The facts that an executed notebook published, in order."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if MIME in output.get("data", {}):
                yield output["data"][MIME]


def table_of(rows: list[Mapping[str, Any]], css: str = "forge") -> str:
    """HTML table of equal dicts; numbers right-aligned, every cell escaped."""
    if not rows:
        return "<p>no rows</p>"
    numeric = {key for key in rows[0] if _is_number(rows[0][key])}
    head = "".join(f"<th{' class=number' * (key in numeric)}>{html.escape(str(key))}</th>" for key in rows[0])
    body = "".join("<tr>" + "".join(_cell(row.get(key)) for key in rows[0]) + "</tr>" for row in rows)
    return f'<table class="{css}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def pairs_table(pairs: Mapping[str, Any]) -> str:
    """HTML table of name and value."""
    body = "".join(f"<tr><th>{html.escape(str(key))}</th>{_cell(value)}</tr>" for key, value in pairs.items())
    return f'<table class="forge pairs"><tbody>{body}</tbody></table>'


def gate_table(payload: Mapping[str, Any]) -> str:
    """HTML of a published gate: title with verdict, one row a check, the advice where it failed."""
    rows = [_gate_row(row) for row in payload["rows"]]
    used = [key for key in rows[0] if any(row[key] for row in rows)] if rows else []
    rows = [{key: row[key] for key in used} for row in rows]
    verdict = "passed" if payload["passed"] else "failed"
    advice = "" if payload["passed"] or not payload["advice"] else f"<p>{html.escape(payload['advice'])}</p>"
    title = f'<p><strong>{html.escape(payload["name"])}</strong> <span class="{verdict}">{verdict}</span></p>'
    return f'<div class="gate {verdict}">{title}{table_of(rows)}{advice}</div>'


def gate_text(payload: Mapping[str, Any]) -> str:
    """The same table for a terminal."""
    lines = [f"{payload['name']}: {'passed' if payload['passed'] else 'failed'}"]
    lines += ["  " + "  ".join(f"{key} {value}" for key, value in _gate_row(row).items()) for row in payload["rows"]]
    return "\n".join(lines)


def number(value: Any) -> str:
    """A number as people read it: four significant digits, thousands grouped, None as 'not run'."""
    if value is None:
        return "not run"
    if not _is_number(value):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _gate_row(row: Mapping[str, Any]) -> dict[str, str]:
    control = row.get("control") or {}
    interval = row.get("interval")
    return {
        "check": str(row["name"]),
        "measured": f"{number(row['measured'])} {row.get('unit') or ''}".strip(),
        "needed": f"{row.get('op', '')} {number(row['threshold'])}".strip(),
        "interval": f"{number(interval[0])} to {number(interval[1])}" if interval else "",
        "controls": ", ".join(f"{name} {number(value)}" for name, value in control.items()),
        "verdict": str(row.get("verdict") or SIGNS[row.get("passed")]),
        "note": str(row.get("note") or ""),
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    numeric = _is_number(value)
    text = number(value) if numeric else ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    css = "number" if numeric else value if value in ("passed", "failed", "not run") else ""
    return f'<td class="{css}">{html.escape(text)}</td>' if css else f"<td>{html.escape(text)}</td>"
