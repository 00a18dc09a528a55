"""The ledger of a search: every measured genome, once, on disk before the search goes on.

One JSON line a genome, ended by a hash of the line: what a kill cut short or a disk spoiled is not believed and is
measured again, with the same result.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path


class Ledger:
    """key -> result, kept in `path`; None keeps it in memory only."""

    def __init__(self, path: Path | str | None = None):
        self.path = Path(path) if path is not None else None
        self._results: dict[str, dict] = {}
        if self.path is not None and self.path.is_file():
            found = self.path.read_bytes()
            lines = found.decode("utf-8", errors="replace").split("\n")
            for key, result in filter(None, map(_believed, lines)):
                self._results.setdefault(key, result)
            if found != self._text().encode():
                self._rewrite()

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def __getitem__(self, key: str) -> dict:
        return self._results[key]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[str]:
        return iter(self._results)

    def write(self, key: str, result: dict) -> None:
        """Add a result; it is on disk when this returns."""
        self._results[key] = result
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as lines:
                lines.write(_line(key, result))
                lines.flush()
                os.fsync(lines.fileno())

    def seconds(self) -> float:
        """Time spent measuring, over all processes that wrote here."""
        return sum(result["seconds"] for result in self._results.values())

    def _rewrite(self) -> None:
        """Only whole lines, so that the next one does not continue a torn one."""
        temporary = self.path.with_suffix(".new")
        with temporary.open("w", encoding="utf-8") as lines:
            lines.write(self._text())
            lines.flush()
            os.fsync(lines.fileno())
        os.replace(temporary, self.path)

    def _text(self) -> str:
        return "".join(_line(key, result) for key, result in self._results.items())


def _line(key: str, result: dict) -> str:
    text = json.dumps([key, result], allow_nan=False)
    return f"{text}\t{hashlib.sha256(text.encode()).hexdigest()[:16]}\n"


def _believed(line: str) -> tuple[str, dict] | None:
    text, _, seal = line.rpartition("\t")
    if not text or hashlib.sha256(text.encode()).hexdigest()[:16] != seal:
        return None
    key, result = json.loads(text)
    return key, result
