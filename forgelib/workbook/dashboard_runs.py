"""The run folders as they are now: what each runs, how far it is, and the state that a person wants to know.

A look lists folders and reads the end of each journal that has changed; a whole journal is read when it is looked at.
"""

import json
import time
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from forgelib.core.tracking import JOURNAL
from forgelib.workbook.dashboard_journal import last_record
from forgelib.workbook.tables import is_number

#: Where `core.loop.Control` of a run folder keeps what is asked of it.
CONTROL = "control.json"
#: An unfinished run that wrote nothing for this long is called quiet.
QUIET_SECONDS = 60.0
#: A run's pace is that of its last minutes: of this many seconds, or of its last step where that took longer.
PACE_SECONDS = 300.0
#: Step -> where its last record says how far it is, and the parameter that says how far it goes. `step` counts from 0.
GOES_TO = {
    "11_cognate_train": ("step", "steps"),
    "21_evomerge_evolve": ("step", "generations"),
    "30_quietstar_bake": ("epoch", "epochs"),
    "31_quietstar_rl": ("episode", "episodes"),
    "41_bitnet_finetune": ("epoch", "epochs"),
}
TRUNK = ("step", "trunk_steps")
#: What a run's line shows of its last record: the first of these that it holds.
SHOWN = (
    *("avg_reward_100", "best", "accuracy_overall", "reasoning_accuracy", "anti_theater_ablation"),
    *("loss", "loss_after"),
)


@dataclass(frozen=True)
class RunFolder:
    """One run. last: the last whole record of its journal, or None; changed: when it gave its last sign of life, in
    seconds since 1970; asked: what is asked of it from outside, "run", "pause" or "stop"."""

    path: Path
    step: str
    key: str
    params: dict
    tags: dict
    last: dict | None
    changed: float
    asked: str
    finished: bool

    @property
    def name(self) -> str:
        """The folder's name, which tells runs apart."""
        return self.path.name

    @property
    def short(self) -> str:
        """A name to read: the step, the part of it, and the first characters of the key."""
        part = self.tags.get("part") or self.tags.get("strategy") or ""
        return " ".join(filter(None, (self.step, part, self.key[:6]))) if self.key else self.name

    @property
    def phase(self) -> int:
        """First digit of the step's number; 0 for a folder that is no step's."""
        return max(1, int(self.step[0])) if self.step[:2].isdigit() else 0

    def state(self, now: float) -> str:
        """finished (its artifact is published), paused, stopping, running (it wrote in the last minute) or quiet."""
        if self.finished:
            return "finished"
        if self.asked != "run":
            return {"pause": "paused", "stop": "stopping"}[self.asked]
        return "running" if now - self.changed < QUIET_SECONDS else "quiet"

    def progress(self) -> tuple[float, float, str] | None:
        """How far it is, how far it goes, and in what; None where the step does not say, or has not begun."""
        field, limit = TRUNK if self.tags.get("part") == "trunk" else GOES_TO.get(self.step, ("", ""))
        done, total = (self.last or {}).get(field), self.params.get(limit)
        if not is_number(done) or not is_number(total) or total <= 0:
            return None
        return done + (field == "step"), total, limit.removeprefix("trunk_")

    def shown(self) -> tuple[str, float] | None:
        """The value of the last record that says most, with its name."""
        for name in SHOWN:
            if self.last and is_number(self.last.get(name)):
                return name, self.last[name]
        return None


class Runs:
    """`look(root, finished)` lists the runs, the latest first; what did not change is not read again."""

    def __init__(self) -> None:
        self._facts: dict[Path, tuple[tuple, dict]] = {}
        self._last: dict[Path, tuple[tuple, dict | None]] = {}

    def look(self, root: Path, finished: Set[str]) -> list[RunFolder]:
        """The runs below <root>/runs; `finished` holds the keys of what is published."""
        found = (self._one(folder, finished) for folder in (root / "runs").glob("*"))
        return sorted((run for run in found if run), key=lambda run: (run.changed, run.name), reverse=True)

    def _one(self, folder: Path, finished: Set[str]) -> RunFolder | None:
        facts_file, journal = folder / "run.json", folder / JOURNAL
        facts_stamp, journal_stamp = stamp(facts_file), stamp(journal)
        if facts_stamp is None and journal_stamp is None:
            return None
        facts = self._once(self._facts, facts_file, facts_stamp, _facts)
        last = self._once(self._last, journal, journal_stamp, last_record)
        changed = (journal_stamp or facts_stamp)[2] / 1e9
        step, key = str(facts.get("step") or folder.name.split("-")[0]), str(facts.get("key") or "")
        params, tags = _dict(facts.get("params")), _dict(facts.get("tags"))
        return RunFolder(folder, step, key, params, tags, last, changed, asked(folder), key in finished)

    @staticmethod
    def _once(known: dict, path: Path, now: tuple | None, read):
        """What `read(path)` gave when the file was last changed."""
        if path not in known or known[path][0] != now:
            known[path] = (now, read(path))
        return known[path][1]


class Pace:
    """How fast runs go, measured between the looks of this page: neither what was done before the first look counts nor
    what was done long ago."""

    def __init__(self) -> None:
        self._steps: dict[str, list[tuple[float, float]]] = {}

    def left(self, run: RunFolder, now: float | None = None) -> tuple[float, float] | None:
        """Units a second and seconds left; None until the run was seen to go on."""
        progress = run.progress()
        if progress is None or run.finished:
            return None
        now = time.monotonic() if now is None else now
        done, total, _ = progress
        steps = self._steps.setdefault(run.name, [(now, done)])
        if done < steps[-1][1]:  # it went back to a checkpoint
            steps[:] = [(now, done)]
        elif done > steps[-1][1]:
            steps.append((now, done))
        while len(steps) > 2 and now - steps[1][0] > PACE_SECONDS:
            del steps[0]
        (since, first), (until, reached) = steps[0], steps[-1]
        if until <= since:
            return None
        rate = (reached - first) / (until - since)
        return rate, max(0.0, total - done) / rate


def asked(folder: Path) -> str:
    """What `core.loop.Control(folder).read()` says, without loading what trains."""
    try:
        action = json.loads((folder / CONTROL).read_text())["action"]
    except (OSError, ValueError, KeyError, TypeError):
        return "run"
    return action if action in ("pause", "stop") else "run"


def stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does: its place on the disk, its size, its time in nanoseconds. None: no such file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _facts(path: Path) -> dict:
    """run.json; {} while it is being written, or where there is none."""
    try:
        return _dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _dict(value: object) -> dict:
    return value if isinstance(value, dict) else {}
