"""Reasoning rows written by large models through OpenRouter's OpenAI-compatible API.

A request is journalled with the most it can cost before it is sent, and with its cost when it is answered. What a kill
leaves unanswered counts with that most, so the cost limit holds over any number of sessions; the rows of an answer are
on disk before its cost is. Started again, only missing rows are asked for.
"""

import asyncio
import contextlib
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from urllib.parse import urlparse

from forgelib.data import (
    STRATEGIES,
    Budget,
    Chat,
    DataError,
    Outcome,
    Pace,
    RowStore,
    Vocabulary,
    check_strategies,
    json_request,
    read_objects,
)

KEY = "OPENROUTER_API_KEY"
#: So many requests in a row without any answer, whatever the model, and the service is taken to be down.
UNANSWERED = 10
#: Tokens that a server's chat frame may add to a prompt.
FRAME_TOKENS = 64


class OpenRouterError(DataError):
    """The service cannot be used: no key, a refused key, no credit, no answers."""


@dataclass(frozen=True)
class PricedModel:
    """dollars_in, dollars_out: the most that a provider may take for a million tokens; max_output_tokens: the most that
    the model writes in one answer."""

    name: str
    dollars_in: float
    dollars_out: float
    max_output_tokens: int = 16_000


MODELS = (
    PricedModel("openai/gpt-4o-mini", 0.15, 0.60),
    PricedModel("google/gemini-2.0-flash-001", 0.10, 0.40, 8_000),
    PricedModel("meta-llama/llama-3.3-70b-instruct", 0.40, 0.80, 8_000),
    PricedModel("qwen/qwen-2.5-72b-instruct", 0.40, 0.80, 8_000),
    PricedModel("deepseek/deepseek-chat", 0.40, 1.20, 8_000),
)


@dataclass(frozen=True)
class OpenRouterConfig:
    """rows_per_pair: rows for each model and strategy. cost_limit: dollars, over all sessions in a folder. attempts:
    how often a request is tried; backoff_seconds: the first wait between two tries, doubled each time. tokens_per_row:
    what an answer may use for a row. barren_requests: so many in a row without a good row, and the pair is given up."""

    models: tuple[PricedModel, ...] = MODELS
    strategies: tuple[str, ...] = STRATEGIES
    rows_per_pair: int = 500
    rows_per_request: int = 100
    requests_per_minute: int = 50
    cost_limit: float = 200.0
    timeout_seconds: float = 300.0
    attempts: int = 5
    backoff_seconds: float = 1.0
    concurrency: int = 8
    tokens_per_row: int = 320
    temperature: float = 1.0
    barren_requests: int = 3
    base_url: str = "https://openrouter.ai/api/v1"

    def __post_init__(self):
        counts = ("rows_per_pair", "rows_per_request", "requests_per_minute", "attempts", "concurrency")
        for name in (*counts, "tokens_per_row", "barren_requests"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DataError(f"{name} is {value!r}; it must be a whole number above 0")
        for name in ("cost_limit", "timeout_seconds", "backoff_seconds"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise DataError(f"{name} is {value!r}; it must be a number above 0")
        if not self.models or not self.strategies:
            raise DataError("at least one model and one strategy must be named")
        for what, names in (("model", [model.name for model in self.models]), ("strategy", list(self.strategies))):
            if double := [name for name, times in Counter(names).items() if times > 1]:
                raise DataError(f"{what} '{double[0]}' is named twice")
        for model in self.models:
            if not (model.dollars_in >= 0 and model.dollars_out >= 0 and model.max_output_tokens >= 1):
                raise DataError(f"model {model.name}: prices must be 0 or more and max_output_tokens above 0")
        address = urlparse(self.base_url)
        if address.scheme != "https" and address.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise DataError(f"base_url {self.base_url}: must begin with https://, or the key would travel in the open")


@dataclass(frozen=True)
class OpenRouterRecord:
    """One finished request. asked, accepted: rows; rejected, faults: reason -> count, of rows and of tries; failed: why
    there was no answer; dollars: of this request. Totals over all sessions: dollars_spent, dollars_left, requests (each
    try is one), rows. The last record has no model where `stopped` says why rows are missing."""

    model: str
    strategy: str
    asked: int
    accepted: int
    rejected: dict[str, int]
    faults: dict[str, int]
    tokens_in: int
    tokens_out: int
    dollars: float
    dollars_spent: float
    dollars_left: float
    requests: int
    rows: int
    failed: str = ""
    stopped: str = ""


def write_with_openrouter(
    config: OpenRouterConfig, words: Vocabulary, folder: Path, *, pace: Pace | None = None
) -> Iterator[OpenRouterRecord]:
    """Ask until every model has written its rows for every strategy, or the money is spent; rows lie in
    `folder/rows.jsonl`. Requests begin only while records are taken; leaving early waits for those under way.

    Raises, before any request, OpenRouterError without a key in OPENROUTER_API_KEY and DataError for a strategy that
    the vocabulary does not have; later OpenRouterError where the service refuses the key or gives no answers.
    """
    check_strategies(config.strategies, words)
    _key()
    return _records(config, words, Path(folder), pace or Pace(config.requests_per_minute))


def _key() -> str:
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise OpenRouterError(
            f"{KEY} is not set. Put your OpenRouter key into this environment variable; it is not kept."
        )
    if not all("!" <= one <= "~" for one in key):
        raise OpenRouterError(f"{KEY} holds a blank or a character that no key has. Copy it anew.")
    return key


def _records(config: OpenRouterConfig, words: Vocabulary, folder: Path, pace: Pace) -> Iterator[OpenRouterRecord]:
    """The requests live in a loop on a thread of its own: a notebook's own loop is running already."""
    with contextlib.closing(RowStore(folder, words, "openrouter")) as store:
        maker = _Maker(config, store, pace)
        loop = asyncio.new_event_loop()
        thread = Thread(target=loop.run_forever, daemon=True)
        thread.start()

        def wait_for(coroutine):
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

        try:
            while (record := wait_for(maker.next_record())) is not None:
                yield record
        finally:
            if not sys.is_finalizing():  # the thread is gone then
                wait_for(maker.leave())
                loop.call_soon_threadsafe(loop.stop)
                thread.join()
                loop.close()


@dataclass
class _Job:
    number: int
    model: PricedModel
    strategy: str
    asked: int
    prompt: str
    max_tokens: int
    by_price: float
    bound: float
    reserved: float = 0.0
    tries: int = 0
    dollars: float = 0.0
    accepted: int = 0
    rejected: Counter = field(default_factory=Counter)
    faults: Counter = field(default_factory=Counter)

    @property
    def pair(self) -> tuple[str, str]:
        return self.model.name, self.strategy


class _Maker:
    """What is under way in one session."""

    def __init__(self, config: OpenRouterConfig, store: RowStore, pace: Pace):
        self.config, self.store, self.pace = config, store, pace
        self.budget = Budget(config.cost_limit, _spent(store.events))
        sent = [event for event in store.events if event["event"] == "sent"]
        self.requests, self.jobs = len(sent), max((event["request"] for event in sent), default=0)
        pace.remember([time.time() - event["at"] for event in sent])
        self.pairs = deque((model, strategy) for strategy in config.strategies for model in config.models)
        self.asked, self.barren, self.given_up = Counter(), Counter(), {}
        self.tasks: set[asyncio.Task] = set()
        self.on_wire: set[asyncio.Task] = set()
        self.ready: deque[OpenRouterRecord] = deque()
        self.unanswered, self.leaving, self.stopped, self.broken = 0, False, "", ""
        self.chat = Chat(_key(), config.base_url, config.timeout_seconds)

    async def next_record(self) -> OpenRouterRecord | None:
        """The next finished request, None after the last."""
        self._start_jobs()
        while not self.ready:
            if not self.tasks and self.broken:
                raise OpenRouterError(self.broken)
            if not self.tasks:
                return self._closing()
            await asyncio.wait(self.tasks, return_when=asyncio.FIRST_COMPLETED)
            self._start_jobs()
        return self.ready.popleft()

    async def leave(self) -> None:
        """Wait for what is on the wire, which is paid for, and drop what only waits for its turn."""
        self.leaving, tasks = True, set(self.tasks)
        for task in tasks - self.on_wire:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.chat.close()

    @property
    def _ending(self) -> bool:
        return self.leaving or bool(self.broken)

    def _start_jobs(self) -> None:
        self.stopped = ""
        for task in [task for task in self.tasks if task.done()]:
            self.tasks.discard(task)
            task.result()  # raises what no answer explains: a full disk, say
        while len(self.tasks) < self.config.concurrency and not self._ending and (job := self._next_job()):
            if not self.budget.reserve(job.bound):
                self.stopped = (
                    f"the cost limit of ${self.budget.limit:g} is reached: ${self.budget.spent:.4g} are spent and the "
                    f"next request can cost ${job.bound:.4g}. Raise cost_limit and start again, what is there is kept."
                )
                return
            self.jobs, job.reserved = job.number, job.bound
            self.asked[job.pair] += job.asked
            self.tasks.add(asyncio.get_running_loop().create_task(self._do(job)))

    def _next_job(self) -> _Job | None:
        for _ in range(len(self.pairs)):
            model, strategy = self.pairs[0]
            missing = self._missing(model, strategy) - self.asked[model.name, strategy]
            if missing <= 0 or (model.name, strategy) in self.given_up:
                self.pairs.rotate(-1)
                continue
            count, number = min(missing, self.config.rows_per_request), self.jobs + 1
            prompt = json_request(strategy, count, self.store.words, number)
            most = min(count * self.config.tokens_per_row, model.max_output_tokens)
            tokens_in = len(prompt.encode()) + FRAME_TOKENS  # no tokenizer makes more tokens than bytes
            dollars = (tokens_in * model.dollars_in + most * model.dollars_out) / 1e6
            self.pairs.rotate(-1)
            return _Job(number, model, strategy, count, prompt, most, dollars, self.budget.bound(model.name, dollars))
        return None

    def _missing(self, model: PricedModel, strategy: str) -> int:
        return self.config.rows_per_pair - self.store.count(f"openrouter:{model.name}", strategy)

    async def _do(self, job: _Job) -> None:
        import tenacity

        first = self.config.backoff_seconds
        longer = tenacity.wait_exponential(multiplier=first, max=60) + tenacity.wait_random(0, first)
        tries = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_result(lambda outcome: outcome.retry and not self._ending),
            stop=tenacity.stop_after_attempt(self.config.attempts),
            wait=lambda state: max(longer(state), state.outcome.result().retry_after),
            retry_error_callback=lambda state: state.outcome.result(),
        )
        try:
            self.ready.append(self._finish(job, await tries(self._try, job)))
        finally:
            self.budget.reserved -= job.reserved
            self.asked[job.pair] -= job.asked

    async def _try(self, job: _Job) -> Outcome:
        await self.pace.turn()
        if self.broken:
            return Outcome(fault="not sent", told="an earlier request showed that the service cannot be used")
        if not job.reserved and not self.budget.reserve(job.bound):
            return Outcome(fault="cost limit", told="no money is left to try again")
        reserved = job.reserved = job.bound
        job.tries, self.requests = job.tries + 1, self.requests + 1
        place = {"request": job.number, "try": job.tries}
        self.store.note(event="sent", **place, model=job.model.name, reserved=reserved, at=time.time())
        prices = (job.model.dollars_in, job.model.dollars_out)
        task = asyncio.current_task()
        self.on_wire.add(task)
        try:
            outcome = await self.chat.ask(
                job.model.name,
                job.prompt,
                max_tokens=job.max_tokens,
                temperature=self.config.temperature,
                prices=prices,
                bound=reserved,
            )
        finally:
            self.on_wire.discard(task)
        if outcome.retry_after:
            self.pace.hold(outcome.retry_after)
        if outcome.text:
            self._keep(job, outcome.text)
        self.budget.settle(job.model.name, reserved, outcome.dollars, job.by_price)
        job.reserved, job.dollars = 0.0, job.dollars + outcome.dollars
        job.faults.update([outcome.fault] if outcome.fault else [])
        self.store.note(event="settled", **place, dollars=outcome.dollars, fault=outcome.fault)
        return outcome

    def _keep(self, job: _Job, text: str) -> None:
        facts, lost = read_objects(text)
        job.accepted, job.rejected = self.store.add(facts, job.strategy, f"openrouter:{job.model.name}", job.asked)
        job.rejected.update(lost)

    def _finish(self, job: _Job, outcome: Outcome) -> OpenRouterRecord:
        shared = {
            "strategy": job.strategy,
            "asked": job.asked,
            "accepted": job.accepted,
            "rejected": dict(job.rejected),
            "faults": dict(job.faults),
            "tokens_in": outcome.tokens_in,
            "tokens_out": outcome.tokens_out,
            "dollars": job.dollars,
        }
        source = f"openrouter:{job.model.name}"
        self.store.note(event="finished", request=job.number, source=source, **shared, failed=outcome.told)
        if outcome.fault in ("401", "402"):
            cause = "the key is refused" if outcome.fault == "401" else "the account has no credit left"
            self.broken = f"{cause} ({outcome.told}). Rows written so far are kept in {self.store.folder}."
        self.unanswered = 0 if outcome.text else self.unanswered + 1
        if self.unanswered >= UNANSWERED:
            self.broken = self.broken or (
                f"{UNANSWERED} requests in a row were not answered, the last: {outcome.told}. Start again later: the "
                f"rows in {self.store.folder} are kept."
            )
        self.barren[job.pair] = 0 if job.accepted else self.barren[job.pair] + 1
        if self.barren[job.pair] >= self.config.barren_requests:
            reasons = job.rejected.most_common(1)
            self.given_up[job.pair] = outcome.told or (reasons[0][0] if reasons else "no rows")
        return self._record(model=job.model.name, **shared, failed=outcome.told)

    def _record(self, **facts) -> OpenRouterRecord:
        money = {"dollars_spent": self.budget.spent, "dollars_left": self.budget.limit - self.budget.spent}
        return OpenRouterRecord(**facts, **money, requests=self.requests, rows=len(self.store.rows))

    def _closing(self) -> OpenRouterRecord | None:
        """Why rows are missing, once."""
        told = [self.stopped] if self.stopped else []
        told += [
            f"{model} on {strategy} is given up after {self.config.barren_requests} requests in a row without a usable "
            f"row: {why}"
            for (model, strategy), why in self.given_up.items()
        ]
        missing = sum(self._missing(model, strategy) for model, strategy in self.pairs)
        self.stopped, self.given_up, self.leaving = "", {}, True
        if not told:
            return None
        text = f"{missing} rows are missing: {'; '.join(told)}"
        return self._record(
            **dict.fromkeys(("model", "strategy"), ""),
            **dict.fromkeys(("asked", "accepted", "tokens_in", "tokens_out"), 0),
            **{"rejected": {}, "faults": {}, "dollars": 0.0, "stopped": text},
        )


def _spent(events: list[dict]) -> float:
    """Dollars by a journal; a request that was sent and never settled counts with the most it can have cost."""
    cost = {}
    for event in events:
        if event["event"] in ("sent", "settled"):
            cost[event["request"], event["try"]] = event["reserved" if event["event"] == "sent" else "dollars"]
    return sum(cost.values())
