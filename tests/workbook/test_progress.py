"""A progress line counts right, shows the asked values, and draws rarely."""

import pytest

from forgelib.workbook import progress
from forgelib.workbook.console import say, watched
from forgelib.workbook.progress import Progress, duration
from forgelib.workbook.stages import Stages


class Clock:
    """time.monotonic that moves only when told."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_rate_and_time_left(clock, capsys):
    bar = Progress(({"loss": 2.5 - n} for n in range(4)), total=4, label="trunk", show=("loss",))
    steps = iter(bar)
    next(steps)
    clock.now += 2.0
    next(steps)
    assert bar.line() == "trunk 25% · 1/4 · 2.0 s each · 0:06 left · loss 2.5"


def test_a_resumed_run_counts_from_where_it_was(clock, capsys):
    bar = Progress(iter(range(3)), total=10, start=7)
    for _ in bar:
        clock.now += 1.0
    assert bar.line() == "100% · 10/10 · 1.0/s · 0:03 in all"


def test_records_say_where_an_interrupted_run_goes_on(clock, capsys):
    bar = Progress(({"step": step} for step in (6, 7, 8, 9)), total=10)
    for _ in bar:
        clock.now += 2.0
    assert bar.line() == "100% · 10/10 · 2.0 s each · 0:08 in all"


def test_work_that_tells_how_far_it_is(clock, capsys, monkeypatch):
    monkeypatch.setattr("forgelib.workbook.stages.time", clock)
    told = Stages("trial")
    clock.now += 30.0
    told("own thoughts", 3, 10)
    assert told.line() == "trial 30% · 3/10 · 10.0 s each · 1:10 left · own thoughts"
    clock.now += 70.0
    told("shuffled", 10, 10)
    shown = capsys.readouterr().err
    assert shown.endswith("trial 100% · 10/10 · 10.0 s each · 1:40 in all · shuffled\n") and shown.count("\n") == 1


@pytest.mark.parametrize("terminal", [True, False])
def test_a_command_has_its_line_on_a_terminal_and_none_in_a_log(monkeypatch, capsys, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    for n in watched(iter(range(3)), 3, "search"):
        say(f"generation {n}")
    said, shown = capsys.readouterr()
    assert said == "generation 0\ngeneration 1\ngeneration 2\n"
    assert ("search 100% · 3/3" in shown) == terminal
    assert shown.startswith("\r\x1b[K") if terminal else shown == "", "what is said makes room first"


def test_many_fast_items_draw_a_few_lines(clock, capsys):
    for _ in Progress(range(10_000), total=10_000, label="fast"):
        clock.now += 0.001
    shown = capsys.readouterr().err
    assert 10 < shown.count("\r") < 40
    assert shown.count("\n") == 1


def test_the_last_state_is_drawn_when_the_loop_is_left_early(clock, capsys):
    for step in Progress(range(100), total=100, label="stopped"):
        if step == 2:
            break
    assert "2/100" in capsys.readouterr().err


@pytest.mark.parametrize("seconds, text", [(7.4, "0:07"), (750, "12:30"), (3723, "1:02:03"), (59.7, "1:00")])
def test_duration(seconds, text):
    assert duration(seconds) == text
