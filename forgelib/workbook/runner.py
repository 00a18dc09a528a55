"""`forge run`: the notebooks in order, finished ones reused, the reports written whatever happens.

A finished notebook leaves <step>.ipynb and a record <step>.json beside it in the run folder's `executed/`. It is reused
when its key (plan.step_keys), its file and the artifacts it published are all as they were; no kernel starts then.
"""

import json
import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forgelib.core.artifacts import MANIFEST, code_digest, file_sha256
from forgelib.core.paths import datasets_mirror, repo_root, reports_dir, runs_dir
from forgelib.core.registry import Registry
from forgelib.workbook.console import Console
from forgelib.workbook.params import ParameterError
from forgelib.workbook.plan import (
    PAGES,
    PHASES,
    PLAN,
    Step,
    asked_of,
    available,
    library_versions,
    parameters,
    select,
    step_keys,
)
from forgelib.workbook.publish import published


class RunFailed(RuntimeError):
    """A notebook of the run failed; the text names it, the cell and the error."""


def run_plan(
    asked: Mapping[str, Any], only: str = "", reports: Path | None = None, console: Console | None = None
) -> list[Path]:
    """Run every step whose name begins with `only`, all of PLAN for ""; returns the reports written.

    `asked` holds the explicit profile, seed, data and wandb_mode, each absent when the profile decides. The reports are
    written after each phase and at the end. Raises ParameterError before any kernel starts, and RunFailed, after the
    reports are written, when a notebook failed.
    """
    if (mirror := datasets_mirror()) is not None and not mirror.is_dir():
        raise ParameterError(f"the mirror {mirror} is no folder: correct FORGE_DATASETS or leave it unset")
    console, reports = console or Console(), reports or reports_dir()
    plan, pages = available(PLAN), available(PAGES)
    chosen = select(only, (*plan, *pages)) if only else plan
    folder, keys = executed_dir(asked), step_keys(plan, asked)
    keys |= {page.name: f"as of {time.time_ns()}" for page in pages}  # a page holds only now
    try:
        reports.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ParameterError(f"--reports {reports}: cannot be made ({error.strerror})") from None
    console.say(f"Agent Forge · {folder.name} · executed notebooks in {folder}")
    needed = {name for step in chosen for name in step.needs}
    for step in reversed(plan):  # what the chosen ones rest on
        needed |= set(step.needs) if step.name in needed else set()
    for step in plan:
        if step.name in needed and step not in chosen and _still_holds(step, keys[step.name], folder):
            _take_up(read_record(folder, step)["artifacts"])
    try:
        for step, following in zip(chosen, (*chosen[1:], None), strict=True):
            _run_or_reuse(step, keys[step.name], asked, folder, console)
            if following is not None and following.phase != step.phase:
                write_reports(asked, reports)
                console.say(f"  report  {reports / f'phase{step.phase}.html'}")
    finally:
        written = write_reports(asked, reports)
        for path in written:
            console.say(f"  report  {path}")
    mirror_reports(asked, reports, console)
    return written


def mirror_reports(asked: Mapping[str, Any], reports: Path, console: Console) -> None:
    """Mirror verdicts, tables and pages to W&B where the notebooks ask for it (`workbook.mirror`)."""
    from forgelib.workbook.mirror import RUNS, mirror_phase

    folder, executed = executed_dir(asked), {}
    for step in available(PLAN):
        if step.phase in RUNS and read_record(folder, step).get("status") == "finished":
            notebook = json.loads((folder / f"{step.name}.ipynb").read_text())
            executed.setdefault(step.phase, {})[step.name] = notebook
    for number, notebooks in executed.items():
        made = mirror_phase(number, notebooks, reports / f"phase{number}.html", folder.name)
        if made is not None:
            console.say(f"  W&B     {made}")


def executed_dir(asked: Mapping[str, Any]) -> Path:
    """Folder of the executed notebooks of one profile, seed and source of data."""
    params = parameters(PLAN[0], asked)
    return runs_dir() / "executed" / f"{params.profile}-seed{params.seed}-{params.data}"


def write_reports(asked: Mapping[str, Any], reports: Path) -> list[Path]:
    """Write phase<N>.html for each phase, and index.html, from the notebooks as they were last executed.

    A finished notebook that something it rests on has outrun is shown as out of date; one of no phase has no report.
    """
    from forgelib.workbook.report import Chapter, write_index, write_phase

    plan, folder = available(PLAN), executed_dir(asked)
    keys, phases = step_keys(plan, asked), {}
    for step in plan:
        record = read_record(folder, step)
        if record.get("status") == "finished" and record["key"] != keys[step.name]:
            record["status"] = "out of date"
        if step.phase in PHASES:
            chapter = Chapter(step.name, folder / f"{step.name}.ipynb", record)
            phases.setdefault(step.phase, []).append(chapter)
    reports.mkdir(parents=True, exist_ok=True)
    pages = [write_phase(number, steps, folder.name, reports) for number, steps in phases.items()]
    return [*pages, write_index(phases, folder.name, reports)]


def read_record(folder: Path, step: Step) -> dict[str, Any]:
    """What is known of a step's last run: status, key, seconds, error; {} when it never ran or the record is torn."""
    try:
        return json.loads((folder / f"{step.name}.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _run_or_reuse(step: Step, key: str, asked: Mapping[str, Any], folder: Path, console: Console) -> None:
    from forgelib.workbook.execute import NotebookFailed, execute

    console.begin(step.name)
    if _still_holds(step, key, folder):
        _take_up(read_record(folder, step)["artifacts"])
        console.end("reused: nothing it rests on has changed")
        return
    output, began = folder / f"{step.name}.ipynb", time.time()
    params = {"profile": parameters(step, asked).profile, **asked_of(step, asked)}
    try:
        done = execute(step.path, output, params, console.note)
    except KeyboardInterrupt:
        _write_record(folder, step, {"status": "interrupted", "seconds": time.time() - began})
        console.end("interrupted; the same command goes on from the last checkpoint")
        raise
    except NotebookFailed as failure:
        error = f"{step.name}, cell {failure.cell} ({failure.opening}): {failure.reason}"
        _write_record(folder, step, {"status": "failed", "seconds": time.time() - began, "error": failure.reason})
        console.end("failed")
        raise RunFailed(f"{error}\nThe executed notebook: {output}\n{_what_next(failure.reason)}") from None
    facts = list(published(done))
    red = [fact["name"] for fact in facts if fact["kind"] == "gate" and not fact["passed"]]
    record = {
        "status": "finished",
        "key": key,
        "seconds": time.time() - began,
        "code": code_digest()[:16],
        "commit": commit(),
        "libraries": library_versions(),
        "sha256": file_sha256(output),
        "artifacts": [fact["path"] for fact in facts if fact["kind"] == "artifact"],
    }
    _write_record(folder, step, record)
    console.end(f"done; gate not passed: {', '.join(red)}" if red else "done")


def _what_next(reason: str) -> str:
    """An input that is missing was left out by --only: the steps are in order, and the whole run makes it."""
    if reason.startswith("MissingInput"):
        return "`forge run` with the same options, without --only, makes what is missing and goes on."
    return "Once that is mended, the same command goes on from here."


def commit() -> str:
    """The checkout's commit, with a + where files differ from it; "" where there is no git or no checkout."""
    git = ["git", "-C", str(repo_root())]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, timeout=20)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=20).returncode
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return head.stdout.strip() + "+" * bool(changed) if head.returncode == 0 else ""


def _still_holds(step: Step, key: str, folder: Path) -> bool:
    record, output = read_record(folder, step), folder / f"{step.name}.ipynb"
    if record.get("status") != "finished" or record.get("key") != key or not output.is_file():
        return False
    artifacts = all((Path(path) / MANIFEST).is_file() for path in record["artifacts"])
    return artifacts and file_sha256(output) == record["sha256"]


def _take_up(paths: list[str]) -> None:
    """What runs next goes on with these artifacts, not with those of a variant that was made by hand since."""
    registry = Registry(runs_dir())
    for path in paths:
        registry.take_up(file_sha256(Path(path) / MANIFEST))


def _write_record(folder: Path, step: Step, record: Mapping[str, Any]) -> None:
    path = folder / f"{step.name}.json"
    draft = path.with_suffix(".json.partial")
    draft.write_text(json.dumps({"finished_at": time.strftime("%Y-%m-%d %H:%M:%S"), **record}, indent=1))
    os.replace(draft, path)
