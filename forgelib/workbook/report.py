"""reports/phase<N>.html and reports/index.html: one file each, nothing fetched, from the notebooks as executed.

On top what a reader asks first: did the gates pass, on which rows, from which parameters and code. Below, the chapters.
"""

import html
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from forgelib.workbook import render, tables
from forgelib.workbook.plan import PHASES
from forgelib.workbook.progress import duration
from forgelib.workbook.publish import published

#: The browser itself refuses every request: only the page's own style and images written into it are shown.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
CSS = Path(__file__).with_name("report.css")
#: What each phase does, for who opens the index first.
ABOUT = {
    1: "A small language model with a memory is trained, and three specialists from it.",
    2: "The three are merged by six techniques; evolution searches for the best merge, the champion.",
    3: "The champion learns to think before it answers; trials tell whether the thoughts are real.",
    4: "Its weights are rounded to -1, 0 and 1, trained on and packed.",
}
#: Where the verdicts of a phase would stand.
NO_GATE = "<p>No gate has been reached.</p>"
#: What a chapter's badge means where the word alone does not say it.
MEANING = {"out of date": ' title="its notebook, its code or a library changed since it ran"'}


class Chapter:
    """One step of the run: its name, its record ({} when it never ran) and its executed notebook, if there is one."""

    def __init__(self, name: str, path: Path, record: Mapping[str, Any]):
        self.name, self.record = name, record
        self.notebook, self.status = None, record.get("status", "not run")
        try:
            self.notebook = json.loads(path.read_text())
        except FileNotFoundError:
            self.status = "not run"
        except json.JSONDecodeError:
            self.status = "damaged"
        for cell in self.notebook["cells"] if self.notebook else ():
            _join_lines(cell)
        self.facts = list(published(self.notebook)) if self.notebook else []

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """The facts of one kind that the notebook published."""
        return [fact for fact in self.facts if fact["kind"] == kind]

    @property
    def gates(self) -> list[dict[str, Any]]:
        return self.of_kind("gate")


def write_phase(number: int, chapters: list[Chapter], run_name: str, reports: Path) -> Path:
    """Write reports/phase<number>.html and return its path."""
    title = f"Phase {number} · {PHASES[number]}"
    written = f"{html.escape(run_name)} · {_seconds(chapters)} · written {time.strftime('%Y-%m-%d %H:%M')}"
    links = "".join(f'<a href="#{c.name}">{html.escape(c.name)}</a>' for c in chapters)
    body = [
        f"<h1>{title}</h1>",
        f'<p class="meta">{written}</p>',
        f'<nav><a href="index.html">All phases</a>{links}</nav>',
        f"<h2>Verdicts{_tally(chapters)}</h2>{_verdicts(chapters)}",
        f"<h2>Data</h2>{_sources(chapters, number)}",
        f"<h2>Artifacts</h2>{_artifacts(chapters)}",
        f"<h2>Provenance</h2>{_provenance(chapters)}",
        '<h2 class="chapters">Chapters</h2>',
        *_chapters(chapters),
    ]
    return _write(reports / f"phase{number}.html", f"Agent Forge · {title}", "\n".join(body))


def write_index(phases: Mapping[int, list[Chapter]], run_name: str, reports: Path) -> Path:
    """Write reports/index.html: every phase's steps, and each gate with the checks that it did not pass."""
    body = ["<h1>Agent Forge</h1>", f'<p class="meta">{html.escape(run_name)} · {time.strftime("%Y-%m-%d %H:%M")}</p>']
    for number, chapters in sorted(phases.items()):
        body.append(f'<h2><a href="phase{number}.html">Phase {number} · {PHASES[number]}</a>{_tally(chapters)}</h2>')
        body.append(f'<p>{ABOUT[number]}</p><p class="meta">{html.escape(_rows_by_source(chapters))}</p>')
        body.append(_scroll(tables.table([_step_row(chapter) for chapter in chapters])))
        gates = [_gate_row(gate) for chapter in chapters for gate in chapter.gates]
        body.append(_scroll(tables.table(gates)) if gates else NO_GATE)
        body += [_failure(chapter) for chapter in chapters if chapter.status == "failed"]
    return _write(reports / "index.html", "Agent Forge", "\n".join(body))


def _verdicts(chapters: Iterable[Chapter]) -> str:
    parts = [_failure(c) for c in chapters if c.status == "failed"]
    parts += [f'<p class="meta">{html.escape(c.name)}</p>{tables.gate(gate)}' for c in chapters for gate in c.gates]
    return "".join(parts) or NO_GATE


def _tally(chapters: list[Chapter]) -> str:
    """How many gates passed; green only where all of them did and no step is missing."""
    verdicts = [bool(gate["passed"]) for chapter in chapters for gate in chapter.gates]
    missing = sum(chapter.status not in ("finished", "out of date") for chapter in chapters)
    word = "not run" if not verdicts or (all(verdicts) and missing) else "passed" if all(verdicts) else "failed"
    rest = f", {missing} of {len(chapters)} steps missing" if missing else ""
    return f' <span class="badge {word}">{sum(verdicts)} of {len(verdicts)} gates passed{rest}</span>'


def _failure(chapter: Chapter) -> str:
    text = f"{chapter.name} stopped: {chapter.record.get('error', '')}"
    return f'<div class="error"><pre>{html.escape(text)}</pre></div>'


def _sources(chapters: Iterable[Chapter], phase: int) -> str:
    facts = [fact for chapter in chapters for fact in chapter.of_kind("sources")]
    return "".join(render.sources(fact["rows"], fact.get("columns")) for fact in facts) or _nothing_listed(phase)


def _nothing_listed(phase: int) -> str:
    return "<p>not run</p>" if phase == 1 else "<p>The rows are those that the reports of the phases before list.</p>"


def _rows_by_source(chapters: list[Chapter]) -> str:
    """Datasets counted by where their rows came from."""
    facts = (fact for chapter in chapters for fact in chapter.of_kind("sources"))
    counted = Counter(row["source"] for fact in facts for row in fact["rows"])
    other = "those of the phases before" if any(chapter.notebook for chapter in chapters) else "not run"
    return "Datasets: " + (", ".join(f"{count} {source}" for source, count in counted.items()) or other)


def _artifacts(chapters: Iterable[Chapter]) -> str:
    """Each artifact once, with the step that published it first."""
    rows: dict[str, dict[str, str]] = {}
    for chapter in chapters:
        for fact in chapter.of_kind("artifact"):
            row = {"step": chapter.name, "artifact": fact["name"], "sha256": fact["digest"][:16]}
            rows.setdefault(fact["digest"], {**row, "folder": Path(fact["path"]).name})
    return _scroll(tables.table(list(rows.values()))) if rows else "<p>none published</p>"


def _provenance(chapters: list[Chapter]) -> str:
    """What each step was run from: one row a step, the libraries, then its parameters behind a fold."""
    ran = [chapter for chapter in chapters if chapter.notebook]
    if not ran:
        return "<p>not run</p>"
    parts = [_scroll(tables.table([_origin_row(chapter) for chapter in ran]))]
    for libraries in dict.fromkeys(", ".join(map(" ".join, c.record.get("libraries", {}).items())) for c in ran):
        parts += [f'<p class="meta">Libraries: {html.escape(libraries)}</p>'] if libraries else []
    for chapter in ran:
        for fact in chapter.of_kind("provenance"):
            table = _scroll(tables.pairs(fact.get("pairs", ())))
            parts.append(f"<details><summary>{html.escape(chapter.name)}</summary>{table}</details>")
    return "".join(parts)


def _origin_row(chapter: Chapter) -> dict[str, Any]:
    """Seed and data as asked, the code by its digest and commit, the executed notebook by its hash."""
    asked = {name: value for fact in chapter.of_kind("provenance") for name, value in fact.get("pairs", ())}
    return {
        "step": chapter.name,
        "profile": asked.get("profile", ""),
        "seed": asked.get("seed", ""),
        "data": asked.get("data", ""),
        "code": chapter.record.get("code") or _code_of(chapter),
        "commit": chapter.record.get("commit", ""),
        "executed notebook": chapter.record.get("sha256", "")[:16],
    }


def _code_of(chapter: Chapter) -> str:
    """The code that made the step's artifact, by its manifest: for records from before the code was noted there."""
    for fact in reversed(chapter.of_kind("artifact")):
        manifest = Path(fact["path"]) / "manifest.json"
        if manifest.is_file():
            return json.loads(manifest.read_text())["code"][:16]
    return "not recorded"


def _chapters(chapters: Iterable[Chapter]) -> Iterable[str]:
    """Each executed notebook; a notebook run several times is open the first time and folded after that."""
    seen = set()
    for chapter in chapters:
        notebook = chapter.name.split("-")[0]
        opened = "" if notebook in seen else " open"
        anchor = f'<a id="{notebook}"></a>' if opened and notebook != chapter.name else ""
        seen.add(notebook)
        badge = f'<span class="badge {chapter.status}"{MEANING.get(chapter.status, "")}>{chapter.status}</span>'
        body = render.cells(chapter.notebook, chapter.name) if chapter.notebook else f"<p>{chapter.status}</p>"
        summary = f"<summary>{html.escape(chapter.name)} {badge}</summary>"
        yield f'{anchor}<details class="chapter" id="{chapter.name}"{opened}>{summary}{body}</details>'


def _step_row(chapter: Chapter) -> dict[str, str]:
    return {
        "step": chapter.name,
        "state": chapter.status,
        "time": duration(chapter.record["seconds"]) if "seconds" in chapter.record else "",
        "finished": str(chapter.record.get("finished_at", "")),
    }


def _gate_row(gate: Mapping[str, Any]) -> dict[str, str]:
    wrong = [tables.gate_row(row) for row in gate["rows"] if not row["passed"]]
    why = "; ".join(f"{row['check']}: {row['measured']}, needed {row['needed']}" for row in wrong)
    return {"gate": gate["name"], "verdict": "passed" if gate["passed"] else "failed", "not passed": why}


def _seconds(chapters: Iterable[Chapter]) -> str:
    return f"{duration(sum(c.record.get('seconds', 0) for c in chapters))} of computing"


def _scroll(table: str) -> str:
    return f'<div class="scroll">{table}</div>'


def _join_lines(cell: dict[str, Any]) -> None:
    """On disk a notebook may keep texts as lists of lines; from here on they are strings."""
    cell["source"] = "".join(cell["source"])
    for out in cell.get("outputs", ()):
        out.update({key: "".join(value) for key, value in out.items() if key == "text"})
        data = out.get("data", {})
        data.update({mime: "".join(value) for mime, value in data.items() if isinstance(value, list)})


def _write(path: Path, title: str, body: str) -> Path:
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n"
        f"<style>\n{CSS.read_text()}{render.code_css()}\n</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
    draft = path.with_suffix(".html.partial")
    draft.write_text(page, encoding="utf-8")
    os.replace(draft, path)
    return path
