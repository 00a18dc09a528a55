"""Pace and budget: their limits hold whatever the order of events."""

import asyncio
import random

import pytest

from forgelib.data import Budget, DataError, Pace


class Clock:
    """Time that passes only in sleep."""

    def __init__(self):
        self.time = 0.0

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds
        await asyncio.sleep(0)


def begun(pace: Pace, clock: Clock, requests: int, workers: int, hold_after: int = -1) -> list[float]:
    times: list[float] = []

    async def worker():
        while len(times) < requests:
            await pace.turn()
            times.append(clock.now())
            if len(times) == hold_after:
                pace.hold(500.0)
            await clock.sleep(random.random())

    async def main():
        await asyncio.gather(*(worker() for _ in range(workers)))

    asyncio.run(main())
    return times


@pytest.mark.parametrize("workers", [1, 8])
def test_no_window_holds_more_requests_than_the_limit(workers):
    clock = Clock()
    times = begun(Pace(50, 60.0, clock.now, clock.sleep), clock, 400, workers)
    assert all(later - earlier > 60.0 - 1e-6 for earlier, later in zip(times, times[50:], strict=False))
    if workers == 1:  # several move this clock by the sum of their waits
        assert times[-1] <= 60.0 * 8, "nor fewer: 400 requests at 50 a minute are under way within eight minutes"


def test_the_requests_of_an_earlier_process_count():
    clock = Clock()
    pace = Pace(5, 60.0, clock.now, clock.sleep)
    pace.remember([10.0, 30.0, 61.0, 20.0, -3.0])
    times = begun(pace, clock, 3, 1)
    assert times[1] <= 1.0 and times[2] >= 30.0, "two of five are left; the third waits for the oldest"


def test_nobody_begins_while_the_server_wants_quiet():
    clock = Clock()
    times = begun(Pace(50, 60.0, clock.now, clock.sleep), clock, 20, 8, hold_after=10)
    assert times[10] >= times[9] + 500.0 - 8.0


def test_spent_and_reserved_never_pass_the_limit():
    dice, budget, open_requests = random.Random(0), Budget(10.0), []
    for _ in range(5000):
        bound = dice.uniform(0, 1)
        if dice.random() < 0.5 and budget.reserve(bound):
            open_requests.append(bound)
        elif open_requests:
            bound = open_requests.pop(dice.randrange(len(open_requests)))
            budget.settle("m", bound, dice.choice([0, 0.001 * bound, 0.02 * bound]), bound)
        assert budget.spent + sum(open_requests) <= 10.0 + 1e-9
        assert budget.reserved == pytest.approx(sum(open_requests), abs=1e-9)
    assert budget.spent > 5.0, "and the money is used"


def test_a_bound_that_was_broken_grows():
    budget = Budget(10.0)
    for _ in range(2):
        budget.reserve(1.0)
        budget.settle("m", 1.0, 1.5, 1.0)
    assert budget.bound("m", 2.0) == 3.0 and budget.bound("other", 2.0) == 2.0


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_no_budget_is_refused(limit):
    with pytest.raises(DataError, match="must be above 0"):
        Budget(limit)
