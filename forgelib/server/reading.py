"""What the files of a job tell: its run folder, how far it is, its gates, the last lines of its log."""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from forgelib.core.paths import runs_dir
from forgelib.core.tracking import JOURNAL
from forgelib.server.secrecy import mask
from forgelib.workbook import dashboard_journal
from forgelib.workbook.dashboard_runs import CONTROL, asked, stamp
from forgelib.workbook.publish import published

LOG_LINES, TAIL_BYTES = 20, 65_536
#: A line of workbook.progress.Progress: label, share, count, rate, clock.
LINE = re.compile(r"(.*?) ?\d+% · (\d+)/(\d+) · ([\d.]+)(/s| s each) · ([\d:]+) (left|in all)")


def find_run(notebook: str, parameters: dict[str, Any], since: float) -> Path | None:
    """The run folder that a notebook with these parameters opened after `since` (seconds since the epoch)."""
    opened = []
    for facts in (runs_dir() / "runs").glob(f"{notebook}-*/run.json"):
        written = facts.stat().st_mtime
        if written >= since and _same(facts, parameters):
            opened.append((written, facts.parent))
    return max(opened)[1] if opened else None


def _same(facts: Path, parameters: dict[str, Any]) -> bool:
    try:
        kept = json.loads(facts.read_text(encoding="utf-8"))["params"]
    except (ValueError, KeyError, OSError):  # being written
        return False
    return all(value == parameters[name] for name, value in kept.items() if name in parameters)


def progress_of(text: str) -> dict[str, Any] | None:
    """Label, steps done and in all, rate and seconds left, from a line of Progress; None for any other text."""
    found = LINE.match(text)
    if found is None:
        return None
    label, done, total, number, unit, clock, kind = found.groups()
    number = float(number)
    return {
        "label": label,
        "done": int(done),
        "total": int(total),
        "per_second": number if unit == "/s" else 1 / number,
        "seconds_left": float(_seconds(clock)) if kind == "left" else None,
    }


def _seconds(clock: str) -> int:
    seconds = 0
    for part in clock.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds


def asked_of(run: Path, since: float) -> str:
    """What was asked of a run after `since` (seconds since the epoch): run, pause or stop."""
    written = stamp(run / CONTROL)
    return asked(run) if written and written[2] / 1e9 >= since else "run"


def last_record(run: Path) -> dict[str, Any] | None:
    """The last whole record of a run's journal, names without the prefix of their phase; "nan" and "inf" are texts, for
    strict JSON has no such numbers."""
    record = dashboard_journal.last_record(run / JOURNAL)
    return record and {name: _strict(value) for name, value in record.items()}


def _strict(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def caught_up(progress: dict[str, Any] | None, journal: dict[str, Any] | None) -> dict[str, Any] | None:
    """Progress that counts the steps which an earlier job of the same run had done: the journal holds them all."""
    if progress is None or journal is None or not progress["done"] < journal["step"] + 1 <= progress["total"]:
        return progress
    done = journal["step"] + 1
    known = done < progress["total"] and progress["per_second"] > 0
    left = (progress["total"] - done) / progress["per_second"] if known else None
    return progress | {"done": done, "seconds_left": left}


def facts_of(notebook: Path) -> dict[str, list[dict[str, Any]]]:
    """Gates and artifacts that an executed notebook published; none where it is not there or half written."""
    try:
        facts = list(published(json.loads(notebook.read_text(encoding="utf-8"))))
    except (OSError, ValueError, KeyError):
        facts = []
    gates = [
        {"name": fact["name"], "passed": fact["passed"], "checks": fact["rows"]}
        for fact in facts
        if fact["kind"] == "gate"
    ]
    artifacts = [{name: fact[name] for name in ("name", "digest", "path")} for fact in facts if _is_artifact(fact)]
    return {"gates": gates, "artifacts": artifacts}


def _is_artifact(fact: dict[str, Any]) -> bool:
    return fact["kind"] == "artifact" and {"name", "digest", "path"} <= set(fact)


def log_tail(log: Path) -> list[str]:
    """The last lines of a log, with secrets of the environment blotted out."""
    return mask(_tail(log)).splitlines()[-LOG_LINES:]


def _tail(path: Path) -> str:
    """The end of a file of lines, the first of them perhaps torn; "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
