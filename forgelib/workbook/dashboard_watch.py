"""One look at a runs folder for all panels of the dashboard, reading as little of it as possible."""

import time
from pathlib import Path

from forgelib.core.tracking import JOURNAL
from forgelib.workbook.dashboard_journal import Journal
from forgelib.workbook.dashboard_runs import Pace, RunFolder, Runs
from forgelib.workbook.dashboard_store import Store, checkpoints, space

#: Seconds between two measurements of what folders hold: that goes through all files.
SPACE_SECONDS = 30.0


class Watch:
    """`look()`, then `runs` (the latest first), `store`, `pace`, and `now`, the time of the look in seconds since 1970.

    Journals are read whole only through `records`, and from then on only what was added. One that nobody asked for
    between two looks is forgotten: a page may be open for weeks.
    """

    def __init__(self, root: Path):
        self.root, self.store, self.pace = Path(root), Store(Path(root)), Pace()
        self.runs: list[RunFolder] = []
        self.now = 0.0
        self._listing, self._journals, self._asked_for = Runs(), {}, set()
        self._space: tuple[float, dict[str, int]] = (0.0, {})

    def look(self) -> None:
        """See what is there now."""
        self._journals = {name: self._journals[name] for name in self._asked_for}
        self._asked_for = set()
        self.now = time.time()
        self.store.look()
        self.runs = self._listing.look(self.root, self.store.keys)

    def run(self, name: str) -> RunFolder | None:
        """The run of this folder name, or None where it is gone."""
        return next((run for run in self.runs if run.name == name), None)

    def latest(self, step: str, before: RunFolder | None = None) -> RunFolder | None:
        """The latest run of a step; with `before`, the latest one but this."""
        return next(
            (run for run in self.runs if run.step == step and (before is None or run.name != before.name)), None
        )

    def records(self, run: RunFolder) -> list[dict]:
        """All records of a run's journal up to now."""
        self._asked_for.add(run.name)
        journal = self._journals.setdefault(run.name, Journal(run.path / JOURNAL))
        journal.look()
        return journal.records

    def bytes_read(self) -> int:
        """Bytes that were read of the journals that panels look at, the ends of all others left out."""
        return sum(journal.bytes_read for journal in self._journals.values())

    def checkpoints(self) -> list[dict]:
        """The checkpoints that lie there now."""
        return checkpoints(self.root)

    def space(self) -> dict[str, int]:
        """Disk and memory as they were measured within the last half minute."""
        measured, found = self._space
        if not found or self.now - measured > SPACE_SECONDS:
            self._space = (self.now, space(self.root))
        return self._space[1]
