"""The process of a job: it runs one notebook and keeps the record, to the last word.

With profile, seed and data alone it does what `forge run --only <notebook>` does: the page lands in the report, and a
step that is finished and unchanged is reused. With any other parameter the executed notebook lies beside the record.
"""

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from forgelib.server import processes, reading, records
from forgelib.server.jobs import INTERRUPTED
from forgelib.server.records import Record
from forgelib.server.secrecy import mask
from forgelib.server.tasks import COMMON
from forgelib.workbook.console import Console
from forgelib.workbook.execute import NotebookFailed, execute
from forgelib.workbook.plan import Step
from forgelib.workbook.runner import RunFailed, executed_dir, read_record, run_plan

SECONDS_BETWEEN_NOTES = 0.5


class JobConsole(Console):
    """A console whose lines go to the log and whose notes go to the record; not every one, but the last `progress`."""

    def __init__(self, folder: Path, record: Record, output: Path):
        super().__init__(sys.stderr)
        self.folder, self.record = folder, record
        self.draft = output.with_suffix(".partial.ipynb")
        self.progress: dict[str, Any] | None = None
        self._noted, self._cell = 0.0, ""

    def say(self, text: str) -> None:
        super().say(mask(text))

    def note(self, text: str) -> None:
        super().note(text)
        cell, _, line = text.partition(" · ")
        self.progress = reading.progress_of(line) or self.progress
        if cell == self._cell and time.monotonic() - self._noted < SECONDS_BETWEEN_NOTES:
            return
        facts = {"at": mask(text), "progress": self.progress}
        if cell != self._cell:
            facts["gates"] = reading.facts_of(self.draft)["gates"]
        self.record = records.change(self.folder, **facts, run=self.record["run"] or self._run())
        self._noted, self._cell = time.monotonic(), cell

    def _run(self) -> str | None:
        run = reading.find_run(self.record["notebook"], self.record["resolved"], self.record["created"])
        return run.name if run else None


def main() -> None:
    """Wait to be told the job's folder, then work. Nobody tells when the server died before the record was written."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a server in the background ignores it, and so would we
    if told := sys.stdin.readline().strip():
        work(Path(told))


def work(folder: Path) -> None:
    """Run the job of `folder` and write its last word, when nothing of it is left but this process."""
    record = records.read(folder)
    plain = set(record["parameters"]) <= set(COMMON)
    home = executed_dir(record["parameters"]) if plain else folder
    output = home / f"{record['notebook']}.ipynb"
    console = JobConsole(folder, record, output)
    state, error = "finished", None
    try:
        if record["stop_asked"]:
            raise KeyboardInterrupt
        (_run_workbook if plain else _run_notebook)(record, output, console)
    except KeyboardInterrupt:
        state, error = "stopped", INTERRUPTED
    except (RunFailed, NotebookFailed) as failure:
        state, error = _verdict(record, failure, home)
    except Exception as failure:
        console.say(traceback.format_exc())
        state, error = "failed", f"{type(failure).__name__}: {failure}"
    processes.end_all(record["id"], spare=lambda pid: pid == os.getpid())
    console.say(error or "done")
    run = console.record["run"] or console._run()
    reached = state == "finished" or _written_since(output, record["created"])
    facts = {"run": run, "progress": console.progress, **(reading.facts_of(output) if reached else {})}
    records.end(folder, state, error=error and mask(error), **facts)


def _run_workbook(record: Record, output: Path, console: Console) -> None:
    run_plan(record["parameters"], record["notebook"], console=console)


def _run_notebook(record: Record, output: Path, console: Console) -> None:
    """The notebook with what was asked and the profile it was resolved for, whatever FORGE_PROFILE says later."""
    given: dict[str, Any] = {"profile": record["resolved"]["profile"], **record["parameters"]}
    console.begin(record["notebook"])
    execute(Step(record["notebook"]).path, output, given, console.note)


def _written_since(path: Path, moment: float) -> bool:
    return path.is_file() and path.stat().st_mtime >= moment


def _verdict(record: Record, failure: Exception, home: Path) -> tuple[str, str]:
    """State and error of a notebook that did not reach its end: a stop on request is no failure."""
    if isinstance(failure, NotebookFailed):
        reason = failure.reason
        text = f"{record['notebook']}, cell {failure.cell} ({failure.opening}): {reason}"
    else:
        reason, text = read_record(home, Step(record["notebook"])).get("error", ""), str(failure)
    return ("stopped", reason) if reason.startswith("RunStopped") else ("failed", text)


if __name__ == "__main__":
    main()
