"""A progress line counts right, shows the asked values, and draws rarely."""

import pytest

from forgelib.workbook import progress
from forgelib.workbook.progress import Progress, duration


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
