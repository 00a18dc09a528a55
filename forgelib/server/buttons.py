"""The start buttons of the dashboard: they do what the API does, for the profile, seed and data that the page was
opened with. A job that is started so outlives the page.
"""

from collections.abc import Callable, Mapping

from forgelib.server import jobs
from forgelib.server.answers import Refused
from forgelib.server.routes import complete
from forgelib.server.tasks import COMMON, TASKS
from forgelib.workbook.params import Parameters

LABELS = {"baking": "start baking", "rl": "start reinforcement", "anti-theater": "start the trial"}
COMPLETE = "is Phase 3 complete?"


def starts(p: Parameters) -> dict[str, Callable[[], str]]:
    """Label -> function that starts the step and says so, for `Board.starts`. Each raises ValueError with the refusal
    and what to do about it."""
    asked = {name: getattr(p, name) for name in COMMON}
    buttons = {label: _told(lambda task=task: _start(task, asked)) for task, label in LABELS.items()}
    return {**buttons, COMPLETE: _told(lambda: _complete(asked))}


def _start(task: str, asked: Mapping[str, object]) -> str:
    record = jobs.start(TASKS[task], dict(asked))
    return f"{record['notebook']} runs as job {record['id']}; its curves appear when its run is open"


def _complete(asked: Mapping[str, object]) -> str:
    return f"yes: every gate is passed; {complete('', asked).next} takes it up"


def _told(act: Callable[[], str]) -> Callable[[], str]:
    """The same, with a refusal as one sentence for people."""

    def told() -> str:
        try:
            return act()
        except Refused as refusal:
            raise ValueError(f"{refusal}: {refusal.reply['what to do']}") from None

    return told
