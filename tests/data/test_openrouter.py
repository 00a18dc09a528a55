"""Rows through a chat endpoint, against a real server on loopback: whatever it does, no good row is lost or doubled,
the money holds, the pace holds, and the key is seen by the server alone."""

import asyncio
import json
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import replace

import pytest
from chat_service import Reply, chat, good, rows_for, serving

from forgelib.data import (
    DataError,
    OpenRouterConfig,
    OpenRouterError,
    Pace,
    PricedModel,
    RowStore,
    read_rows,
    statistics,
    vocabulary,
    write_with_openrouter,
)

WORDS = vocabulary("forge-12")
SECRET = "sk-or-v1-0123456789abcdef"
#: A dollar for 1,000 tokens out: ten rows of 100 tokens can cost one dollar.
MODEL = PricedModel("maker/one", 0.0, 1000.0)
CONFIG = OpenRouterConfig(
    models=(MODEL,),
    strategies=("self_doubt",),
    rows_per_pair=20,
    rows_per_request=10,
    requests_per_minute=10_000,
    cost_limit=1000.0,
    timeout_seconds=5.0,
    attempts=3,
    backoff_seconds=0.01,
    concurrency=2,
    tokens_per_row=100,
)


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENROUTER_API_KEY", SECRET)
    monkeypatch.setenv("NO_PROXY", "*")


def write(service, folder, **changes) -> list:
    config = replace(CONFIG, base_url=service.url, **changes)
    return list(write_with_openrouter(config, WORDS, folder))


def first(reply, times: int = 1):
    """A script that misbehaves at first and is good afterwards."""
    return lambda asked: (reply(asked) if callable(reply) else reply) if asked.number < times else good(asked)


def prompts(folder) -> list[str]:
    return [row.prompt for row in read_rows(folder / "rows.jsonl", WORDS)[0]]


def spent(folder) -> float:
    return sum(row["dollars"] for row in statistics(folder))


def test_every_model_writes_its_rows_for_every_strategy(tmp_path):
    models = (MODEL, PricedModel("maker/two", 1.0, 2.0))
    strategies = ("self_doubt", "mece", "bayesian")
    with serving(good) as service:
        records = write(service, tmp_path, models=models, strategies=strategies, rows_per_pair=25, concurrency=4)
    rows, skipped = read_rows(tmp_path / "rows.jsonl", WORDS)
    assert skipped == [] and len({row.prompt for row in rows}) == len(rows)
    pairs = {(f"openrouter:{model.name}", strategy): 25 for model in models for strategy in strategies}
    assert Counter((row.source, row.strategy) for row in rows) == pairs and not any(row.verified for row in rows)
    assert len(records) == len(service.asked) == 18 and {asked.count for asked in service.asked} == {10, 5}
    assert records[-1].rows == 150 and records[-1].requests == 18 and records[-1].stopped == ""
    owed = 9 * (50 * 1000 / 1e6) + 9 * (100 * 1.0 + 50 * 2.0) / 1e6
    assert records[-1].dollars_spent == pytest.approx(owed) == spent(tmp_path)
    assert records[-1].dollars_left == pytest.approx(1000 - owed)
    sent = json.loads(next(asked for asked in service.asked if asked.model == MODEL.name and asked.count == 10).body)
    assert sent["provider"] == {"max_price": {"prompt": 0.0, "completion": 1000.0}} and sent["max_tokens"] == 1000


LATE = {"status": 429, "headers": {"Retry-After": "0.3"}}


@pytest.mark.parametrize(
    "reply, fault, dollars",
    [
        (Reply('{"error": {"message": "slow down", "code": 429}}', **LATE), "429", 0.0),
        (Reply("oops", status=500), "500", 0.0),
        (Reply("oops", status=503), "503", 0.0),
        (Reply("gateway", status=504), "504", 1.0),
        (lambda asked: replace(good(asked), delay=0.6), "timeout", 1.0),
        (lambda asked: replace(good(asked), drip=0.05), "timeout", 1.0),
        (lambda asked: replace(good(asked), promised=100_000), "connection", 1.0),
        (Reply("", promised=10), "connection", 1.0),
        (Reply('{"error": {"message": "upstream", "code": 502}, "usage": {"cost": 0.25}}'), "502", 0.25),
        (Reply('{"choices": [{"error": {"message": "upstream", "code": 502}}]}'), "502", 1.0),
    ],
    ids=["429", "500", "503", "504", "slow", "dripping", "truncated", "closed", "error-in-200", "error-in-choice"],
)
def test_a_passing_fault_is_tried_again_and_counted(tmp_path, reply, fault, dollars):
    with serving(first(reply)) as service:
        records = write(service, tmp_path, timeout_seconds=0.4 if fault == "timeout" else 5.0)
    assert len(prompts(tmp_path)) == 20 == len(set(prompts(tmp_path)))
    assert len(records) == 2 and len(service.asked) == 3 == records[-1].requests
    assert sum((Counter(record.faults) for record in records), Counter()) == {fault: 1}
    assert records[-1].dollars_spent == pytest.approx(0.1 + dollars), "what may have been paid counts with its bound"
    assert spent(tmp_path) == pytest.approx(records[-1].dollars_spent)
    if fault == "429":
        assert service.asked[2].at - service.asked[0].at >= 0.3, "the server's own wait is kept"


@pytest.mark.parametrize(
    "spoil, reasons",
    [
        (lambda asked: chat([*rows_for(asked)[:9], {"prompt": "x"}]), {"field 'steps' is missing": 1}),
        (lambda asked: chat(json.dumps(rows_for(asked))[:-40]), {"cut off in the middle": 1}),
        (lambda asked: chat(json.dumps(rows_for(asked)).replace('"topic"', "topic", 1)), {"malformed JSON": 1}),
        (lambda asked: chat(rows_for(asked)[:9] + rows_for(asked)[:1]), {"a row with this prompt is there": 1}),
        (lambda asked: chat(rows_for(asked, tag="<wrong>")[:1] + rows_for(asked)[1:]), {"does not have: <wrong>": 1}),
        (lambda asked: chat(rows_for(asked, tag="<step>")[:1] + rows_for(asked)[1:]), {"own tag <doubt>": 1}),
        (lambda asked: chat([{**rows_for(asked)[0], "strategy": "?"}, *rows_for(asked)[1:]]), {"'strategy'": 1}),
        (lambda asked: chat([*rows_for(asked), {**rows_for(asked)[0], "prompt": "more"}]), {"more rows than": 1}),
        (lambda asked: chat("Sorry."), {"no JSON object": 1}),
    ],
    ids=["field", "cut", "malformed", "double", "tag", "own-tag", "strategy", "too-many", "refusal"],
)
def test_bad_rows_are_counted_with_their_reason_and_asked_for_again(tmp_path, spoil, reasons):
    with serving(first(spoil)) as service:
        records = write(service, tmp_path)
    assert len(prompts(tmp_path)) == 20 == len(set(prompts(tmp_path)))
    told = sum((Counter(record.rejected) for record in records), Counter())
    assert told.total() == sum(reasons.values()) and all(any(part in one for one in told) for part in reasons)
    (spoiled,) = [record for record in records if record.rejected]
    again = 10 - spoiled.accepted
    counts = sorted(asked.count for asked in service.asked)  # which of the two was asked first is the machine's affair
    assert counts == sorted([10, 10] + [again] * (again > 0))
    assert statistics(tmp_path)[0]["rejected"] == told


@pytest.mark.parametrize(
    "usage, dollars",
    [
        ({}, 1.0),
        ({"prompt_tokens": "many", "completion_tokens": 5}, 1.0),
        ({"prompt_tokens": 5, "completion_tokens": -5}, 1.0),
        ({"prompt_tokens": 5, "completion_tokens": 200}, 0.2),
        ({"prompt_tokens": 5, "completion_tokens": 200, "cost": 0.15}, 0.15),
        ({"cost": 0.15}, 0.15),
        ({"cost": float("nan")}, 1.0),
        ({"cost": -3}, 1.0),
    ],
)
def test_a_cost_that_is_not_told_counts_with_its_bound(tmp_path, usage, dollars):
    with serving(lambda asked: chat(rows_for(asked), usage)) as service:
        records = write(service, tmp_path, rows_per_pair=10)
    assert records[-1].dollars_spent == pytest.approx(dollars) and records[-1].accepted == 10


def random_bill(seed: int, most: float):
    """A server that charges any part of what a request can cost, or `most` times that; (script, bills)."""
    dice, lock, bills = random.Random(seed), threading.Lock(), []

    def script(asked):
        bound = asked.max_tokens * MODEL.dollars_out / 1e6
        with lock:
            bills.append(bound * dice.uniform(0, 1) if most <= 1 else bound * most)
            wait = dice.uniform(0, 0.01)
        return replace(chat(rows_for(asked), {"cost": bills[-1]}), delay=wait)

    return script, bills


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_eight_at_once_never_pass_the_cost_limit(tmp_path, seed):
    script, bills = random_bill(seed, 1.0)
    with serving(script) as service:
        records = write(service, tmp_path, rows_per_pair=400, cost_limit=12.5, concurrency=8)
    assert sum(bills) <= 12.5 and sum(bills) > 12.5 - 1.0, "all but the last request's bound is used"
    assert records[-1].dollars_spent == pytest.approx(sum(bills)) == spent(tmp_path)
    assert "the cost limit of $12.5 is reached" in records[-1].stopped and records[-1].model == ""
    assert f"{400 - len(prompts(tmp_path))} rows are missing" in records[-1].stopped


def test_a_server_that_charges_above_the_bound_passes_the_limit_by_one_request_at_most(tmp_path):
    script, bills = random_bill(0, 1.5)
    with serving(script) as service:
        write(service, tmp_path, rows_per_pair=400, cost_limit=20.0, concurrency=8)
    assert 20.0 - 1.5 < sum(bills) <= 20.0 + 1.5


def test_at_the_limit_nothing_is_sent_and_a_higher_limit_goes_on(tmp_path):
    with serving(lambda asked: chat(rows_for(asked), {"cost": 1.0})) as service:
        write(service, tmp_path, cost_limit=1.5)
        assert len(service.asked) == 1
        records = write(service, tmp_path, cost_limit=1.5)
        assert len(service.asked) == 1 and len(records) == 1 and "$1 are spent" in records[0].stopped
        records = write(service, tmp_path, cost_limit=2.0)
        assert len(service.asked) == 2 and records[-1].rows == 20 and records[-1].dollars_left == pytest.approx(0.0)
        assert write(service, tmp_path, cost_limit=2.0) == [], "complete: nothing to do, nothing to say"


def test_a_retry_needs_money_too(tmp_path):
    with serving(lambda asked: Reply("late", status=504)) as service:
        records = write(service, tmp_path, cost_limit=2.5, concurrency=1)
    assert len(service.asked) == 2 and records[-1].dollars_spent == pytest.approx(2.0)
    assert "no money is left" in records[0].failed and "cost limit" in records[-1].stopped


def test_no_window_holds_more_requests_than_the_limit(tmp_path):
    config = replace(CONFIG, rows_per_request=2, concurrency=8)
    with serving(first(Reply("busy", status=500), times=3)) as service:
        config = replace(config, base_url=service.url)
        list(write_with_openrouter(config, WORDS, tmp_path, pace=Pace(4, 0.3)))
    store = RowStore(tmp_path, WORDS, "openrouter")
    times = [event["at"] for event in store.events if event["event"] == "sent"]
    store.close()
    assert len(times) == 13 == len(service.asked), "tries count as requests"
    assert all(later - earlier > 0.29 for earlier, later in zip(times, times[4:], strict=False))


def test_a_server_that_wants_quiet_has_it_from_all(tmp_path):
    quiet = Reply("busy", status=429, headers={"Retry-After": "0.5"})
    script = lambda asked: replace(quiet if asked.number == 0 else good(asked), delay=0.1 * asked.number)  # noqa: E731
    with serving(script) as service:
        write(service, tmp_path, rows_per_pair=40, timeout_seconds=5.0)
    assert service.asked[1].at - service.asked[0].at < 0.4 < 0.5 <= service.asked[2].at - service.asked[0].at


def test_it_runs_where_a_loop_is_running_already(tmp_path):
    """As in a notebook."""

    async def notebook(service):
        return write(service, tmp_path)

    with serving(good) as service:
        assert asyncio.run(notebook(service))[-1].rows == 20


def test_rows_are_on_disk_before_their_cost_and_the_bound_before_the_request(tmp_path, monkeypatch):
    seen = []

    def fsync(number):
        name = os.path.basename(os.readlink(f"/proc/self/fd/{number}"))
        seen.append((name, (tmp_path / name).read_text().splitlines()[-1]))

    monkeypatch.setattr("forgelib.data.row_store.os.fsync", fsync)
    with serving(lambda asked: seen.append(("server", "")) or good(asked)) as service:
        write(service, tmp_path, rows_per_pair=10)
    events = [json.loads(line)["event"] if name == "journal.jsonl" else name for name, line in seen]
    assert events == ["maker", "sent", "server", "rows.jsonl", "settled", "finished"]


def test_requests_begin_only_while_records_are_taken_and_a_later_start_asks_for_the_rest(tmp_path):
    with serving(lambda asked: replace(good(asked), delay=0.2)) as service:
        config = replace(CONFIG, base_url=service.url, rows_per_pair=120)
        records = write_with_openrouter(config, WORDS, tmp_path)
        next(records)
        time.sleep(0.1)
        begun = len(service.asked)
        time.sleep(0.4)
        assert len(service.asked) == begun <= 4, "nobody took a second record"
        next(records)
        time.sleep(0.05)
        under_way = 10 * len(service.asked) - len(prompts(tmp_path))
        records.close()
        kept = prompts(tmp_path)
        assert under_way > 0, "the test is about requests under way"
        assert len(kept) == 10 * len(service.asked), "what was under way is paid for, so it is waited for and kept"
        before = len(service.asked)
        rest = list(write_with_openrouter(replace(config, concurrency=8), WORDS, tmp_path))
    assert sum(asked.count for asked in service.asked[before:]) == 120 - len(kept) == sum(one.accepted for one in rest)
    assert prompts(tmp_path)[: len(kept)] == kept and len(set(prompts(tmp_path))) == 120
    assert rest[-1].requests == 12 and rest[-1].dollars_spent == pytest.approx(12 * 0.05)


CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_openrouter import CONFIG, WORDS, write_with_openrouter
config = replace(CONFIG, base_url=sys.argv[1], rows_per_pair=200, concurrency=4)
for record in write_with_openrouter(config, WORDS, Path(sys.argv[2])):
    pass
"""


@pytest.mark.slow
def test_a_kill_loses_at_most_what_was_under_way(tmp_path):
    bills, lock = [], threading.Lock()

    def script(asked):
        with lock:
            bills.append(0.5)
        return replace(chat(rows_for(asked), {"cost": 0.5}), delay=0.03)

    arguments = [sys.executable, "-c", CHILD]
    with serving(script) as service:
        child = subprocess.Popen([*arguments, service.url, str(tmp_path), os.path.dirname(__file__)])
        while len(service.asked) < 9 and child.poll() is None:
            time.sleep(0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        store = RowStore(tmp_path, WORDS, "openrouter")
        kept, events = [row.prompt for row in store.rows], Counter(event["event"] for event in store.events)
        store.close()
        answered, lost = events["settled"], events["sent"] - events["settled"]
        before = len(service.asked)
        assert 10 * answered <= len(kept) < 200 and 0 < lost <= 4
        rest = write(service, tmp_path, rows_per_pair=200)
    assert sum(asked.count for asked in service.asked[before:]) == 200 - len(kept)
    assert prompts(tmp_path)[: len(kept)] == kept and len(set(prompts(tmp_path))) == 200
    owed = 0.5 * (len(bills) - before + answered) + 1.0 * lost
    assert rest[-1].dollars_spent == pytest.approx(owed) and owed >= sum(bills), "what was lost counts with its bound"


def test_two_at_once_in_one_folder_are_refused(tmp_path):
    with serving(good) as service:
        config = replace(CONFIG, base_url=service.url)
        records = write_with_openrouter(config, WORDS, tmp_path)
        next(records)
        with pytest.raises(DataError, match="another process is writing"):
            next(write_with_openrouter(config, WORDS, tmp_path))
        records.close()


def test_a_pair_without_good_rows_is_given_up_and_told(tmp_path):
    strategies = ("self_doubt", "mece")
    script = lambda asked: chat("Sorry.") if asked.tag == "<doubt>" else good(asked)  # noqa: E731
    with serving(script) as service:
        records = write(service, tmp_path, strategies=strategies, concurrency=1, barren_requests=3)
    assert sum(asked.tag == "<doubt>" for asked in service.asked) == 3 and len(prompts(tmp_path)) == 20
    assert "20 rows are missing: maker/one on self_doubt is given up after 3 requests" in records[-1].stopped
    assert "no JSON object" in records[-1].stopped


@pytest.mark.parametrize(
    "reply, told",
    [
        (Reply('{"error": {"message": "User not found."}}', status=401), "key is refused"),
        (Reply('{"error": {"message": "Insufficient credits"}}', status=402), "no credit left"),
        (Reply('{"error": {"message": "Insufficient credits", "code": 402}}'), "no credit left"),
        (Reply("<html>busy</html>", status=503), "10 requests in a row were not answered, the last: 503"),
        (Reply("<html>sign in</html>"), "10 requests in a row were not answered"),
    ],
)
def test_a_service_that_cannot_be_used_is_told_and_good_rows_stay(tmp_path, reply, told):
    script = lambda asked: good(asked) if asked.number == 0 else reply  # noqa: E731
    strategies = ("self_doubt", "mece", "bayesian", "uncertainty", "falsification")
    with serving(script) as service, pytest.raises(OpenRouterError, match=told):
        write(service, tmp_path, strategies=strategies, concurrency=1, attempts=1)
    assert len(prompts(tmp_path)) == 10


@pytest.mark.parametrize(
    "change, told",
    [
        ({"cost_limit": 0}, "cost_limit is 0"),
        ({"cost_limit": -5.0}, "cost_limit is -5.0"),
        ({"cost_limit": float("nan")}, "cost_limit is nan"),
        ({"rows_per_pair": 0}, "rows_per_pair is 0; it must be a whole number above 0"),
        ({"rows_per_request": -1}, "rows_per_request is -1"),
        ({"requests_per_minute": 0}, "requests_per_minute is 0"),
        ({"concurrency": True}, "concurrency is True"),
        ({"attempts": 1.5}, "attempts is 1.5"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0"),
        ({"models": ()}, "at least one model"),
        ({"models": (MODEL, MODEL)}, "model 'maker/one' is named twice"),
        ({"models": (PricedModel("free", -1.0, 1.0),)}, "model free: prices"),
        ({"strategies": ("mece", "mece")}, "strategy 'mece' is named twice"),
        ({"strategies": ("guessing",)}, "strategy 'guessing' is unknown; there are chain_of_thought"),
        ({"base_url": "http://example.org/v1"}, "must begin with https://"),
    ],
)
def test_a_wrong_setting_is_refused_before_any_request(tmp_path, change, told):
    with serving(good) as service, pytest.raises(DataError, match=told):
        write_with_openrouter(replace(CONFIG, **{"base_url": service.url, **change}), WORDS, tmp_path)
    assert service.asked == [] and list(tmp_path.iterdir()) == []


def test_a_strategy_without_a_place_in_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(DataError, match="'uncertainty' has no place in vocabulary forge-8"):
        write_with_openrouter(replace(CONFIG, strategies=("uncertainty",)), vocabulary("forge-8"), tmp_path)


@pytest.mark.parametrize("wrong", [None, "", "  ", "sk-\u00e9t\u00e9-01234", "sk one 01234"])
def test_without_a_usable_key_nothing_is_sent(tmp_path, monkeypatch, wrong):
    monkeypatch.delenv("OPENROUTER_API_KEY")
    if wrong is not None:
        monkeypatch.setenv("OPENROUTER_API_KEY", wrong)
    with serving(good) as service, pytest.raises(OpenRouterError, match="OPENROUTER_API_KEY") as caught:
        write(service, tmp_path)
    assert service.asked == [] and "01234" not in repr(caught.value)


@pytest.mark.parametrize("status", [200, 401, 429, 500])
def test_the_key_is_seen_by_the_server_alone(tmp_path, caplog, status):
    """Also where the server says it back, in an error or in a row."""
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)

    def script(asked):
        if status == 200:
            return chat([{**row, "answer": SECRET} for row in rows_for(asked)])
        return Reply(json.dumps({"error": {"message": f"key {SECRET} {'x' * 170} {SECRET}"}}), status=status)

    records, raised = [], None
    with serving(script) as service:
        config = replace(CONFIG, base_url=service.url, attempts=2)
        try:
            for record in write_with_openrouter(config, WORDS, tmp_path):
                records.append(record)
        except OpenRouterError as error:
            raised = error
    assert service.asked[0].headers["authorization"] == f"Bearer {SECRET}" and caplog.records
    assert (raised is not None) == (status == 401)
    seen = [repr(records), caplog.text, repr([record.__dict__ for record in caplog.records]), repr(config)]
    seen += [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    while raised is not None:
        seen += [repr(raised), "".join(traceback.format_exception(raised)), str(pickle.dumps(raised))]
        raised = raised.__cause__ or raised.__context__
    assert not [text for text in seen if SECRET[:12] in text]
