"""Verdicts and tables of a phase in Weights & Biases, in a run of its own beside its trainings.

Trainings mirror their records while they run (`core.tracking`). What only the executed notebooks hold, gates, tables of
results and the page made of them, is mirrored here when a run of the workbook has ended. Offline unless a notebook was
asked to be online; where every notebook of a phase has W&B disabled, wandb is not imported.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from forgelib.core.paths import runs_dir
from forgelib.core.tracking import Tracker
from forgelib.workbook.publish import published

RUNS = {1: "phase1-cognate", 2: "phase2-evomerge", 3: "phase3-quietstar", 4: "phase4-bitnet"}
#: What a gate's check is, column by column.
CHECK = ("gate", "check", "measured", "op", "threshold", "low", "high", "control", "verdict")
Table = tuple[Sequence[str], list[list[Any]]]


class ReportTracker(Tracker):
    """A tracker that can also mirror tables."""

    def tables(self, tables: Mapping[str, Table]) -> None:
        """Mirror tables by their names: columns, and rows of plain values; nothing happens where W&B is disabled."""
        if self.wandb_mode == "disabled" or not tables:
            return
        import wandb

        made = {
            name: wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)
            for name, (columns, rows) in tables.items()
        }
        with self._in_run_dir_and_quiet():
            self._start_wandb().log(made)


def mirror_phase(number: int, notebooks: Mapping[str, Mapping[str, Any]], page: Path, run_name: str) -> Path | None:
    """Mirror a phase's tables and its page; returns the folder of that W&B run.

    notebooks: step name -> executed notebook; run_name: profile, seed and data. None where W&B is disabled, where there
    is no table yet, and where just these tables were mirrored before.
    """
    facts = {step: list(published(notebook)) for step, notebook in notebooks.items()}
    mode, tables = wanted_mode(facts), dict(tables_of(facts))
    digest = hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()
    folder = runs_dir() / "reports" / run_name / f"phase{number}"
    seen = folder / "mirrored"
    if mode == "disabled" or not tables or (seen.is_file() and seen.read_text() == f"{mode} {digest}"):
        return None
    name = f"{RUNS[number]}-report"
    config = {"run": run_name, **dict(parameters(facts))}
    tracker = ReportTracker(folder, run_name=name, config=config, wandb_mode=mode, job_type="report")
    tracker.tables(tables)
    page_only = folder / "page"
    page_only.mkdir(exist_ok=True)
    (page_only / page.name).write_bytes(page.read_bytes())
    tracker.save_artifact(page_only, name, "report")
    tracker.finish()
    seen.write_text(f"{mode} {digest}")
    return folder


def wanted_mode(facts: Mapping[str, list[dict]]) -> str:
    """online where a notebook of the phase is, else offline where one is, else disabled."""
    modes = {values.get("wandb_mode") for _, values in parameters(facts)}
    return next((mode for mode in ("online", "offline") if mode in modes), "disabled")


def parameters(facts: Mapping[str, list[dict]]) -> Iterator[tuple[str, dict]]:
    """Each step with the parameters and the provenance that its notebook published."""
    for step, published_facts in facts.items():
        for fact in published_facts:
            if fact["kind"] == "provenance":
                yield step, dict(fact["pairs"])


def tables_of(facts: Mapping[str, list[dict]]) -> Iterator[tuple[str, Table]]:
    """Every gate of the phase as one table, and each table of results as one of its own."""
    gates = [check for some in facts.values() for fact in some if fact["kind"] == "gate" for check in _checks(fact)]
    if gates:
        yield "gates", (CHECK, gates)
    seen: Counter[str] = Counter()
    for step, some in facts.items():
        for fact in some:
            if fact.get("columns"):
                name = f"{step}/{fact['kind']}"
                seen[name] += 1
                rows = [[_plain(row.get(column)) for column in fact["columns"]] for row in fact["rows"]]
                yield name if seen[name] == 1 else f"{name} ({seen[name]})", (fact["columns"], rows)


def _checks(gate: Mapping[str, Any]) -> Iterator[list[Any]]:
    for row in gate["rows"]:
        low, high = row.get("interval") or (None, None)
        control = ", ".join(f"{name} {value}" for name, value in (row.get("control") or {}).items())
        measured, threshold = _plain(row["measured"]), _plain(row["threshold"])
        yield [gate["name"], row["name"], measured, row["op"], threshold, low, high, control, row["verdict"]]


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else json.dumps(value)
