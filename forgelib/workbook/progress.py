"""A progress line with rate and time left that updates in place and leaves one line behind, never thousands.

Every point of a run is in the journal (metrics.jsonl); this is only for the eyes of whoever waits.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from forgelib.workbook.publish import MIME

T = TypeVar("T")
SECONDS_BETWEEN_UPDATES = 0.5


class Progress:
    """`for record in Progress(pretrain(...), total=p.steps, label="trunk", show=("loss",)):` shows how far it is.

    `show` names the values of each record (a dict) to display. In a notebook the line is one output that is replaced;
    a saved notebook holds its last state only. In a terminal it is one line on standard error. `start` counts the
    items already done by an earlier, interrupted run; records tell it by the `step` of the first of them.
    """

    def __init__(self, items: Iterable[T], total: int, label: str = "", show: Iterable[str] = (), start: int = 0):
        self.items, self.total, self.label, self.show = items, total, label, tuple(show)
        self.start, self.done, self.values = start, start, ""
        self._handle, self._last = None, 0.0

    def __iter__(self) -> Iterator[T]:
        self._began = time.monotonic()
        try:
            for item in self.items:
                if self.done == self.start == 0 and isinstance(item, dict):
                    self.start = self.done = item.get("step", 0)  # an interrupted run goes on: these are done
                yield item
                self.done += 1
                self._note(item)
                self._draw()
        finally:
            if self.done > self.start or not self.total:
                self._draw(final=True)

    def line(self) -> str:
        """The text now: label, share, count, rate, time left, the shown values."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate = (self.done - self.start) / seconds
        share = self.done / self.total if self.total else 1.0
        if self.done >= self.total or rate == 0:
            clock = f"{duration(seconds)} in all"
        else:
            clock = f"{duration((self.total - self.done) / rate)} left"
        speed = f"{rate:.1f}/s" if rate >= 1 or rate == 0 else f"{1 / rate:.1f} s each"
        parts = (f"{self.label} {share:.0%}".strip(), f"{self.done}/{self.total}", speed, clock, self.values)
        return " · ".join(filter(None, parts))

    def _note(self, item: Any) -> None:
        if isinstance(item, dict) and self.show:
            pairs = [(name, item[name]) for name in self.show if item.get(name) is not None]
            self.values = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in pairs)

    def _draw(self, final: bool = False) -> None:
        now = time.monotonic()
        if not final and now - self._last < SECONDS_BETWEEN_UPDATES:
            return
        self._last = now
        if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()) and hasattr(shell, "kernel"):
            self._display()
        else:
            sys.stderr.write("\r\x1b[K" + self.line() + ("\n" if final else ""))
            sys.stderr.flush()

    def _display(self) -> None:
        from IPython.display import display

        bundle = {MIME: {"kind": "progress", "line": self.line()}, "text/plain": self.line()}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def duration(seconds: float) -> str:
    """0:07, 12:30, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
