"""What lies below a runs folder besides its journals: artifacts, the gates they passed, their lineage, checkpoints."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forgelib.core.registry import Registry
from forgelib.workbook.dashboard_runs import stamp
from forgelib.workbook.publish import published

REGISTRY_FILES = ("registry.sqlite", "registry.sqlite-wal")
VERDICT_FILE = "verdict.json"


@dataclass(frozen=True)
class GateSeen:
    """A gate as it was measured once. of: the run that measured it (profile, seed, data); source: where this is read;
    when: in UTC; checks: rows as `Gate.rows()` gives them; latest: nothing newer of the same gate and run was found."""

    name: str
    step: str
    of: str
    source: str
    when: str
    passed: bool
    checks: list[dict]
    latest: bool = True


@dataclass(frozen=True)
class Lineage:
    """An artifact and what it was made from. nodes: digest -> name, step and verdict; edges: (parent, child)."""

    nodes: dict[str, dict[str, str]] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)


class Store:
    """The artifacts of the registry below `root`, newest first, and the notebooks that `forge run` executed.

    `look()` reads again only what changed. Nothing is verified; a folder without a registry has no artifacts.
    """

    def __init__(self, root: Path):
        self.root = root
        self.artifacts: list[dict] = []
        self._stamp: tuple = (None,) * len(REGISTRY_FILES)
        self._registry: Registry | None = None
        self._notebooks: dict[Path, tuple[tuple | None, list[dict]]] = {}
        self._gates: tuple[tuple, list[GateSeen]] = ((), [])

    @property
    def keys(self) -> set[str]:
        """Keys of the runs whose artifact is there."""
        return {row["manifest"]["key"] for row in self.artifacts}

    def look(self) -> bool:
        """True when the artifacts changed."""
        now = tuple(stamp(self.root / name) for name in REGISTRY_FILES)
        if now == self._stamp:
            return False
        self._stamp = now
        self._registry = Registry(self.root) if now[0] else None
        self.artifacts = self._registry.find() if self._registry else []
        return True

    def lineage(self, digest: str) -> Lineage:
        """The artifact and all its ancestors; what is no longer here keeps the name that its child knew it by."""
        manifests = {row["digest"]: row["manifest"] for row in self.artifacts}
        names = {p["digest"]: p["name"] for manifest in manifests.values() for p in manifest["parents"]}
        rows = self._registry.lineage(digest) if self._registry else []
        nodes = {
            row["digest"]: {
                "name": row["name"] or names.get(row["digest"], "unknown"),
                "step": row["step"] or "no longer here",
                "verdict": _verdict(manifests.get(row["digest"], {}).get("verdicts") or []),
            }
            for row in rows
        }
        edges = [
            (parent["digest"], child)
            for child in nodes
            for parent in manifests.get(child, {}).get("parents", [])
            if parent["digest"] in nodes
        ]
        return Lineage(nodes, edges)

    def verdicts(self) -> list[dict]:
        """The artifacts that hold a verdict on thoughts, newest first."""
        return [row for row in self.artifacts if (row["path"] / VERDICT_FILE).is_file()]

    def gates_stamp(self) -> tuple:
        """What changes when `gates` may."""
        return (self._stamp, *((path, stamp(path)) for path in self._executed()))

    def gates(self) -> list[GateSeen]:
        """Every gate of the manifests and of the executed notebooks, newest first, each measurement once."""
        now = self.gates_stamp()
        if now != self._gates[0]:
            self._gates = (now, self._gather_gates())
        return self._gates[1]

    def _gather_gates(self) -> list[GateSeen]:
        seen, found = set(), []
        for gate in sorted([*self._of_manifests(), *self._of_notebooks()], key=lambda gate: gate.when):
            same = (gate.name, json.dumps([(row["name"], row["measured"]) for row in gate.checks]))
            if same not in seen:
                seen.add(same)
                found.append(gate)
        newest: set[tuple[str, str]] = set()
        marked = []
        for gate in reversed(found):
            of = (gate.name, gate.of)
            marked.append(GateSeen(**{**gate.__dict__, "latest": of not in newest}))
            newest.add(of)
        return marked

    def _of_manifests(self) -> Iterator[GateSeen]:
        for row in self.artifacts:
            manifest = row["manifest"]
            tags, source = manifest["tags"], f"{manifest['name']} {row['digest'][:8]}"
            of = f"{tags.get('profile', '?')}-seed{tags.get('seed', '?')}-{tags.get('data', '?')}"
            for verdict in manifest["verdicts"] or []:
                when, checks = manifest.get("created", ""), verdict["checks"]
                yield GateSeen(verdict["gate"], manifest["step"], of, source, when, verdict["passed"], checks)

    def _executed(self) -> list[Path]:
        found = sorted((self.root / "executed").glob("*/*.ipynb"))
        return [path for path in found if not path.name.endswith(".partial.ipynb")]

    def _of_notebooks(self) -> Iterator[GateSeen]:
        for path in self._executed():
            now = stamp(path)
            if self._notebooks.get(path, (None,))[0] != now:
                self._notebooks[path] = (now, _gates_of(path))
            when = datetime.fromtimestamp((now or (0, 0, 0))[2] / 1e9, UTC).isoformat(timespec="microseconds")
            for fact in self._notebooks[path][1]:
                source = f"executed {path.name}"
                yield GateSeen(fact["name"], path.stem, path.parent.name, source, when, fact["passed"], fact["rows"])


def checkpoints(root: Path) -> list[dict[str, Any]]:
    """The checkpoints that lie there, the latest first: run, folder, step, bytes and when it was written."""
    found = []
    for folder in (root / "runs").glob("*/*/step-*"):
        if folder.name.removeprefix("step-").isdigit():
            run, step = folder.parents[1].name, int(folder.name.removeprefix("step-"))
            written = (stamp(folder) or (0, 0, 0))[2] / 1e9
            row = {"run": run, "folder": folder.parent.name, "step": step, "bytes": tree_bytes(folder)}
            found.append({**row, "written": written})
    return sorted(found, key=lambda row: row["written"], reverse=True)


def space(root: Path) -> dict[str, int]:
    """Bytes of runs, artifacts and executed notebooks below `root`, and of disk and memory, free and in all."""
    import psutil

    here = next(folder for folder in (root, *root.parents) if folder.exists())
    disk, memory = shutil.disk_usage(here), psutil.virtual_memory()
    sizes = {name: tree_bytes(root / name) for name in ("runs", "artifacts", "executed")}
    return {
        **sizes,
        "disk free": disk.free,
        "disk": disk.total,
        "memory free": memory.available,
        "memory": memory.total,
    }


def tree_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; what vanishes meanwhile does not count."""
    total, waiting = 0, [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total


def _gates_of(path: Path) -> list[dict]:
    """The gates that an executed notebook published; none while it is being written."""
    try:
        facts = published(json.loads(path.read_text(encoding="utf-8")))
        return [fact for fact in facts if fact["kind"] == "gate"]
    except (OSError, ValueError, KeyError):
        return []


def _verdict(verdicts: list[dict]) -> str:
    """passed, failed, or "" for an artifact without gates."""
    if not verdicts:
        return ""
    return "passed" if all(verdict["passed"] for verdict in verdicts) else "failed"
