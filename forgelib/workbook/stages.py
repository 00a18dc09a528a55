"""Progress of a work that tells how far it is, instead of handing out its items one by one."""

import time

from forgelib.workbook.progress import Progress


class Stages(Progress):
    """`validate(..., progress=Stages("trial"))`: one line with rate and time left, as of `Progress`, and what it is at.

    Called with (what, done, total); the line is drawn for the last time when done reaches total.
    """

    def __init__(self, label: str = "", start: int = 0):
        super().__init__((), total=0, label=label, start=start)
        self._began = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        self.done, self.total, self.values = done, total, what
        self._draw(final=done >= total)
