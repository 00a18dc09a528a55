"""A journal read while it grows: each look takes up only the bytes that were written since the one before.

Records are those of `core.tracking.read_journal`. A line counts once its end is written, so one that a kill has torn
does no harm; a journal that its run has rewound, or that was replaced, is read again from its start.
"""

import os
from pathlib import Path
from typing import BinaryIO

from forgelib.core.tracking import parse_record
from forgelib.workbook.tables import is_number

#: Bytes looked at first for the last record; a longer record takes more.
TAIL_BYTES = 16_384


class Journal:
    """`look()` and then `records`. bytes_read counts what was read from the disk so far."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.records: list[dict] = []
        self.bytes_read = 0
        self._stamp: tuple | None = None
        self._inode, self._offset, self._last_line = 0, 0, b""

    def look(self) -> bool:
        """Take up what is new. True when `records` changed; a journal that is not there has none."""
        try:
            stat = self.path.stat()
            stamp = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if stamp == self._stamp:
                return False
            with self.path.open("rb") as file:
                changed = self._take(file)
        except FileNotFoundError:
            stamp, changed = None, bool(self.records)
            self._forget()
        self._stamp = stamp
        return changed

    def _take(self, file: BinaryIO) -> bool:
        inode, had = os.fstat(file.fileno()).st_ino, bool(self.records)
        again = inode != self._inode or not self._goes_on(file)
        if again:
            self._forget()
            self._inode = inode
        file.seek(self._offset)
        whole, end, torn = file.read().rpartition(b"\n")
        self.bytes_read += len(whole) + len(end) + len(torn)
        new = []
        if end:
            lines = whole.split(b"\n")
            self._offset, self._last_line = self._offset + len(whole) + 1, lines[-1] + end
            new = _records(lines)
        self.records += new
        return bool(new) or (again and had)

    def _goes_on(self, file: BinaryIO) -> bool:
        """Whether the last line that was read still stands where it stood."""
        file.seek(self._offset - len(self._last_line))
        return file.read(len(self._last_line)) == self._last_line

    def _forget(self) -> None:
        self.records = []
        self._inode, self._offset, self._last_line = 0, 0, b""


def last_record(path: Path) -> dict | None:
    """The last whole record, found from the journal's end without reading what comes before it; None where there is
    none, or no journal that can be read."""
    try:
        with path.open("rb") as file:
            size, chunk = os.fstat(file.fileno()).st_size, TAIL_BYTES
            while True:
                file.seek(max(0, size - chunk))
                lines = file.read(chunk).split(b"\n")[:-1]  # what follows the last end of a line is torn
                for line in reversed(lines if chunk >= size else lines[1:]):
                    if found := _records([line]):
                        return found[0]
                if chunk >= size:
                    return None
                chunk *= 4
    except OSError:
        return None


def _records(lines: list[bytes]) -> list[dict]:
    found = (parse_record(line.decode("utf-8", errors="replace")) for line in lines)
    return [record for record in found if record is not None]


def numbers(records: list[dict]) -> list[str]:
    """Names of the values that are numbers in some record, in the order in which they come up; `step` is none."""
    found: dict[str, None] = {}
    for record in records:
        for name, value in record.items():
            if name not in found and is_number(value):
                found[name] = None
    return [name for name in found if name != "step"]


def points(records: list[dict], name: str) -> list[tuple[float, float]]:
    """(step, value) of every record that holds a number of this name; nan and inf are among them."""
    return [(record["step"], record[name]) for record in records if is_number(record.get(name))]
