"""Two meters for paid requests: how many in a minute, and how many dollars. Both are asked before a request is sent."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

from forgelib.data import DataError


class Pace:
    """At most `limit` requests begin in any `window` seconds; after `hold` none begins for a while.

    `now` and `sleep` are the clock; `past` are ages in seconds of requests that an earlier process began.
    """

    def __init__(
        self,
        limit: int,
        window: float = 60.0,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable] = asyncio.sleep,
    ):
        self.limit, self.window, self.now, self.sleep = limit, window, now, sleep
        self._begun: deque[float] = deque(maxlen=limit)
        self._not_before = float("-inf")

    def remember(self, ages: list[float]) -> None:
        """Count requests of an earlier process, begun `ages` seconds ago."""
        self._begun.extend(self.now() - age for age in sorted(ages, reverse=True) if 0 <= age < self.window)

    def hold(self, seconds: float) -> None:
        """Nobody begins within these seconds: the server said so."""
        self._not_before = max(self._not_before, self.now() + seconds)

    async def turn(self) -> None:
        """Returns when a request may begin, and counts it as begun now."""
        while (wait := self._wait()) > 0:
            await self.sleep(wait)
        self._begun.append(self.now())

    def _wait(self) -> float:
        full = self._begun[0] + self.window if len(self._begun) == self.limit else float("-inf")
        return max(full, self._not_before) - self.now()


class Budget:
    """Dollars. What is `spent` and what is `reserved` for requests under way never exceed `limit` together.

    A request reserves the most that it can cost before it is sent and settles afterwards. Only an answer that costs
    more than its upper bound (a price or a token limit that the server does not keep) can pass the limit, and after one
    such answer the bounds of its model grow in the same ratio.
    """

    def __init__(self, limit: float, spent: float = 0.0):
        if not limit > 0:
            raise DataError(f"the cost limit is {limit:g} dollars; it must be above 0")
        self.limit, self.spent, self.reserved = limit, spent, 0.0
        self._worst: dict[str, float] = {}

    @property
    def left(self) -> float:
        """Dollars that are neither spent nor reserved; negative where an answer broke its bound."""
        return self.limit - self.spent - self.reserved

    def bound(self, model: str, dollars: float) -> float:
        """The upper bound of a request's cost, by what its model was seen to cost."""
        return dollars * self._worst.get(model, 1.0)

    def reserve(self, dollars: float) -> bool:
        """Set dollars aside; False, and nothing set aside, where they are not left."""
        if dollars > self.left + 1e-12:
            return False
        self.reserved += dollars
        return True

    def settle(self, model: str, reserved: float, dollars: float, by_price: float) -> None:
        """The request that reserved these dollars has cost `dollars`; by its price it could cost `by_price`."""
        self.reserved -= reserved
        self.spent += dollars
        if dollars > by_price > 0:
            self._worst[model] = max(self._worst.get(model, 1.0), dollars / by_price)
