"""The lines that forge writes while it works: of `forge run` one a notebook, updated in place on a terminal; of other
commands what they say, above a progress line where there is a terminal to draw it on."""

import contextlib
import errno
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from forgelib.workbook.progress import Progress, duration

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 30.0


def say(text: object) -> None:
    """A line of a command; a progress line that stands on the terminal makes room for it."""
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
        sys.stderr.flush()
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def watched(items: Iterable[T], total: int, label: str, show: Iterable[str] = ()) -> Iterable[T]:
    """The items, with rate and time left on a terminal; a log file gets what the command says and no redrawn lines."""
    return Progress(items, total, label, show) if sys.stderr.isatty() else items


@contextlib.contextmanager
def ended_early(how_to_go_on: str) -> Iterator[None]:
    """What ends a command before its end is one sentence too: Ctrl-C (exit code 130), a request to stop, a full disk or
    one that takes no checkpoint (1)."""
    from forgelib.core.loop import CheckpointError, RunStopped  # here: it loads torch

    try:
        yield
        return
    except KeyboardInterrupt:
        code, words = 130, f"interrupted; {how_to_go_on}"
    except (RunStopped, CheckpointError) as error:
        code, words = 1, f"{error} ({how_to_go_on})"
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        code, words = 1, f"the disk is full; free some space, and {how_to_go_on}"
    sys.stderr.write(f"forge: {words}\n")
    raise SystemExit(code)


class Console:
    """`begin(name)`, then `note(text)` as often as wanted, then `end(text)`. Off a terminal, notes are rare lines."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self._name, self._began, self._spoke = "", 0.0, 0.0

    def say(self, text: str) -> None:
        """A line of its own."""
        self.stream.write(text + "\n")
        self.stream.flush()

    def begin(self, name: str) -> None:
        self._name, self._began = name, time.monotonic()
        self._spoke = self._began
        if not self.live:
            self.say(f"  {name}  started")

    def note(self, text: str) -> None:
        """What the notebook is at; overwritten by the next note."""
        now = time.monotonic()
        line = f"  {self._name}  {duration(now - self._began)}  {text}"
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r\x1b[K" + line[:width])
            self.stream.flush()
        elif now - self._spoke >= SECONDS_BETWEEN_LINES:
            self._spoke = now
            self.say(line)

    def end(self, text: str) -> None:
        """The notebook's last word, with the time it took."""
        clear = "\r\x1b[K" if self.live else ""
        self.say(f"{clear}  {self._name}  {duration(time.monotonic() - self._began)}  {text}")
