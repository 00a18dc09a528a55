"""What a notebook says about itself in a form that the runner and the report can read.

Each call shows a small table to the reader and stores the same facts, as JSON, in the cell's output under the mime type
MIME. The report lifts them out of the executed notebooks: gates to its top, sources and provenance to its tables.
A notebook's file sorts the names inside its JSON; where order matters, facts hold lists.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from forgelib.workbook import tables

MIME = "application/vnd.forge+json"
#: Gates that this notebook has shown, by name.
_shown: dict[str, dict] = {}


def gate(gate: Any) -> None:
    """Show a core.gates.Gate as a table of its checks. Call it before `gate.enforce(...)`: red is seen too."""
    _shown[gate.name] = gate.verdict()
    payload = {"name": gate.name, "passed": gate.passed, "advice": gate.advice, "rows": gate.rows()}
    publish("gate", payload, tables.gate(payload), tables.gate_text(payload))


def sources(table: Iterable[Mapping[str, Any]]) -> None:
    """Show where each dataset's rows came from: one dict a dataset, the same keys in each, `source` among them."""
    rows("sources", table)


def rows(kind: str, table: Iterable[Mapping[str, Any]]) -> None:
    """Show a table that belongs to the results: one dict a row, the same keys in each."""
    lines = [dict(row) for row in table]
    columns = list(lines[0]) if lines else []
    publish(kind, {"columns": columns, "rows": lines}, tables.table(lines, columns))


def pairs(kind: str, values: Mapping[str, Any]) -> None:
    """Show names and values, one pair a line."""
    items = [[name, value] for name, value in values.items()]
    publish(kind, {"pairs": items}, tables.pairs(items))


def provenance(parameters: Any, **facts: Any) -> None:
    """Show what the run rests on: named facts (run key, code digest, device, parents), then the resolved parameters."""
    items = [[name, value] for name, value in [*facts.items(), *parameters.model_dump().items()]]
    publish("provenance", {"notebook": parameters.NOTEBOOK, "pairs": items}, tables.pairs(items))


def artifact(artifact: Any) -> None:
    """Show a published core.artifacts.Artifact: name, digest, folder; and where it was published before with another
    verdict than the gate shown here (other limits, a time measured anew), that one, which is handed on."""
    payload = {"name": artifact.name, "digest": artifact.digest, "path": str(artifact.path)}
    publish("artifact", payload, tables.pairs(payload.items()))
    for kept in artifact.manifest["verdicts"] or ():
        now = _shown.get(kept["gate"])
        if now is not None and json.loads(json.dumps(now)) != kept:
            publish("published earlier", {"pairs": (told := _kept(kept))}, tables.pairs(told))


def _kept(verdict: Mapping[str, Any]) -> list[list[Any]]:
    """A gate as an artifact keeps it, a pair a check."""
    word = "passed" if verdict["passed"] else "failed"
    lines = [
        [row["check"], f"{row['measured']} (needed {row['needed']}): {row['verdict']}"]
        for row in map(tables.gate_row, verdict["checks"])
    ]
    return [[f"{verdict['gate']}, as this artifact keeps it and hands it on", word], *lines]


def publish(kind: str, payload: Mapping[str, Any], table: str = "", text: str = "") -> None:
    """Show `table` (HTML; `text` where there is no HTML) and store `payload` (JSON-able) as facts of this `kind`."""
    from IPython.display import display  # here: the command line reads published facts without loading IPython

    facts = json.loads(json.dumps({"kind": kind, **payload}), parse_constant=str)  # NaN is no JSON: kept as text
    shown = {"text/html": table} if table else {}
    display({MIME: facts, "text/plain": text or f"{kind}: {payload}", **shown}, raw=True)


def published(notebook: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The facts that an executed notebook published, in order."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            if MIME in output.get("data", {}):
                yield output["data"][MIME]
