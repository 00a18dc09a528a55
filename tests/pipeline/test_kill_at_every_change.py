"""Killed at each single change of the file system, what is being written is there as before or as after."""

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forgelib.core.artifacts import draft, load_artifact
from forgelib.core.loop import Checkpointer, Control
from forgelib.core.tracking import Tracker

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link")


def killed_before(number: int, action: Callable[[], object]) -> bool:
    """Run `action` in a forked process that is killed before its change `number`; False when it ended before."""
    child = os.fork()
    if child == 0:
        changes = 0

        def count(event: str, arguments: tuple) -> None:
            nonlocal changes
            writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if (writes or event in CHANGES) and (changes := changes + 1) == number:
                if writes and arguments[2] & os.O_TRUNC and os.path.exists(arguments[0]):
                    os.truncate(arguments[0], 0)  # the worst moment: emptied, not yet written
                os.kill(os.getpid(), signal.SIGKILL)

        with contextlib.suppress(BaseException):
            sys.addaudithook(count)
            action()
            os._exit(0)
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), "the action itself failed"
    return code != 0


def kill_everywhere(folder: Path, prepare: Callable, action: Callable, check: Callable) -> int:
    """prepare(place), action(place) killed before change n, check(place, killed), for every n; how many."""
    number = 0
    while True:
        number += 1
        place = folder / str(number)
        place.mkdir()
        prepare(place)
        killed = killed_before(number, lambda place=place: action(place))
        check(place, killed)
        if not killed:
            return number - 1


def state(step: int) -> dict:
    return {"parts": {"model": {"w": torch.full((3,), float(step))}}}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_checkpoint(tmp_path, damaged):
    """Also where a damaged one of the same step lies in the way."""

    def prepare(place):
        for step in (1, 2):
            Checkpointer(place).save(step, state(step))
        if damaged:
            Checkpointer(place, keep=3).save(3, state(3))
            (place / "step-000000003" / "state.json").write_text("{")

    def check(place, killed):
        checkpointer = Checkpointer(place)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if damaged else "error")
            found = checkpointer.latest()
        assert found["step"] in ((2, 3) if killed else (3,))
        assert torch.equal(found["state"]["parts"]["model"]["w"], torch.full((3,), float(found["step"])))
        checkpointer.save(4, state(4))
        names = sorted(path.name for path in place.iterdir())
        assert names == [f"step-{n:09d}" for n in (found["step"], 4)], "two whole ones are kept, nothing else stays"

    assert kill_everywhere(tmp_path, prepare, lambda place: Checkpointer(place).save(3, state(3)), check) > 8


def test_an_artifact(tmp_path):
    def publish(place):
        with draft(place, "trunk") as new:
            (new.path / "config.json").write_text("{}")
            (new.path / "tokenizer").mkdir()
            (new.path / "tokenizer" / "vocab.txt").write_text("a")
            new.publish(step="s", key="k" * 64, params={}, seed=0)

    def check(place, killed):
        for path in place.glob("trunk-*"):
            load_artifact(path)
        publish(place)
        (whole,) = place.iterdir()
        assert set(load_artifact(whole).manifest["files"]) == {"config.json", "tokenizer/vocab.txt"}

    assert kill_everywhere(tmp_path, lambda place: None, publish, check) >= 8


def test_a_journal_that_is_cut_back(tmp_path):
    def prepare(place):
        for step in range(5):
            Tracker(place, run_name="r").log({"step": step})

    def check(place, killed):
        steps = [record["step"] for record in Tracker(place, run_name="r").records()]
        assert steps == [0, 1, 2] or (killed and steps == [0, 1, 2, 3, 4])

    assert kill_everywhere(tmp_path, prepare, lambda place: Tracker(place, run_name="r").rewind(3), check) > 2


def test_a_request(tmp_path):
    def check(place, killed):
        assert Control(place).read() in (("pause", "stop") if killed else ("stop",))

    def request(action):
        return lambda place: Control(place).request(action)

    assert kill_everywhere(tmp_path, request("pause"), request("stop"), check) >= 2
