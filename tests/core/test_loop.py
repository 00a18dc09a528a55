"""The resumable loop: what is saved, when, and what a full disk, a damaged file or a second process does to it."""

import errno
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from forgelib.core import loop as module
from forgelib.core.loop import Checkpointer, CheckpointError, Control, ResumableLoop
from forgelib.core.rng import seed_everything


class Walk:
    """A part whose value depends on every random number drawn so far."""

    def __init__(self, size: int = 1):
        self.value = torch.zeros(size)

    def step(self) -> float:
        self.value += torch.randn(1) + random.random() + float(np.random.rand())
        return float(self.value[0])

    def state_dict(self) -> dict:
        return {"value": self.value}

    def load_state_dict(self, state: dict) -> None:
        self.value = state["value"].clone()


def walk(folder: Path, total: int, every: int | None = 3, control: Control | None = None, seen: list | None = None):
    """A generator in the form of the package's procedures: its loop body ends in its yield."""
    seed_everything(0)
    part = Walk()
    with ResumableLoop({"walk": part}, total, Checkpointer(folder, every), control) as loop:
        for step in loop:
            value = part.step()
            loop.extra["sum"] = loop.extra.get("sum", 0.0) + value
            if seen is not None:
                seen.append(step)
            yield value, loop


def steps_of(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted(folder.glob("step-*"))]


def test_undisturbed_it_runs_every_step_once_and_keeps_the_newest_two(tmp_path):
    seen = []
    values = [value for value, _ in walk(tmp_path, 10, seen=seen)]
    assert seen == list(range(10)) and len(set(values)) == 10
    assert steps_of(tmp_path) == [9, 10]
    again = []
    assert list(walk(tmp_path, 10, seen=again)) == [] and again == []


def test_due_by_steps_by_seconds_and_by_neither(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    both = Checkpointer(tmp_path / "both", every_steps=5, every_seconds=60)
    assert not both.due(4) and both.due(5)
    clock[0] += 60
    assert both.due(1)
    both.save(1, {})
    assert not both.due(5) and both.due(6)
    assert not Checkpointer(tmp_path / "none").due(10**9)


@pytest.mark.parametrize("wrong", [{"every_steps": 0}, {"every_seconds": -1.0}, {"keep": 0}])
def test_settings_that_save_nothing_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Checkpointer(tmp_path, **wrong)


@pytest.mark.parametrize("left_at", [0, 1, 4, 8])
def test_closing_the_iterator_saves_the_finished_step_and_goes_on_after_it(tmp_path, left_at):
    expected = [value for value, _ in walk(tmp_path / "whole", 9)]
    records = walk(tmp_path / "left", 9)
    first = [next(records)[0] for _ in range(left_at + 1)]
    records.close()
    assert steps_of(tmp_path / "left")[-1] == left_at + 1
    seed_everything(99)
    rest = [(value, loop.extra["sum"]) for value, loop in walk(tmp_path / "left", 9)]
    assert first + [value for value, _ in rest] == expected
    if rest:
        assert rest[-1][1] == pytest.approx(sum(expected))


def test_an_error_inside_a_step_does_not_save_it(tmp_path):
    expected = [value for value, _ in walk(tmp_path / "whole", 9)]
    part = Walk()
    seed_everything(0)
    with pytest.raises(ZeroDivisionError), ResumableLoop({"walk": part}, 9, Checkpointer(tmp_path / "a", 3)) as loop:
        for step in loop:
            part.step()
            if step == 4:
                raise ZeroDivisionError
    assert steps_of(tmp_path / "a") == [3]
    assert [value for value, _ in walk(tmp_path / "a", 9)] == expected[3:]


def test_a_break_inside_a_step_does_not_save_it(tmp_path):
    expected = [value for value, _ in walk(tmp_path / "whole", 9)]
    part = Walk()
    seed_everything(0)
    with ResumableLoop({"walk": part}, 9, Checkpointer(tmp_path / "a", 3)) as loop:
        for step in loop:
            if step == 4:
                break
            part.step()
    assert steps_of(tmp_path / "a") == [3]
    assert [value for value, _ in walk(tmp_path / "a", 9)] == expected[3:]


def test_a_yield_before_the_first_step_counts_no_step(tmp_path):
    def procedure():
        with ResumableLoop({"walk": Walk()}, 9, Checkpointer(tmp_path, 3)) as loop:
            yield "begin"
            yield from loop

    records = procedure()
    next(records)
    records.close()
    assert steps_of(tmp_path) == []


def test_other_parts_are_refused(tmp_path):
    next(iter(list(walk(tmp_path, 3))))
    with (
        pytest.raises(CheckpointError, match="begin anew"),
        ResumableLoop({"other": Walk()}, 9, Checkpointer(tmp_path)),
    ):
        pass


def test_a_stop_ends_after_a_checkpoint_and_is_obeyed_once(tmp_path):
    expected = [value for value, _ in walk(tmp_path / "whole", 9)]
    control, values, last = Control(tmp_path), [], None
    for value, loop in walk(tmp_path / "stopped", 9, None, control):
        values.append(value)
        last = loop
        if len(values) == 4:
            control.request("stop")
    assert last.stopped and len(values) == 4 and steps_of(tmp_path / "stopped") == [4]
    assert control.read() == "run"
    rest = list(walk(tmp_path / "stopped", 9, None, control))
    assert values + [value for value, _ in rest] == expected and not rest[-1][1].stopped


def test_a_pause_holds_the_run_until_it_is_resumed(tmp_path):
    control, seen = Control(tmp_path), []
    control.request("pause")
    runner = threading.Thread(target=lambda: list(walk(tmp_path / "run", 5, None, control, seen)))
    runner.start()
    time.sleep(0.4)
    assert seen == []
    control.request("resume")
    runner.join(10)
    assert seen == [0, 1, 2, 3, 4]


def test_paused_it_can_still_be_stopped(tmp_path):
    control, seen = Control(tmp_path), []
    control.request("pause")
    runner = threading.Thread(target=lambda: list(walk(tmp_path / "run", 5, None, control, seen)))
    runner.start()
    time.sleep(0.3)
    control.request("stop")
    runner.join(10)
    assert not runner.is_alive() and seen == []


def test_a_request_older_than_this_process_is_over(tmp_path):
    """Stopped or paused yesterday, started again today: the start is the newer wish."""
    control, seen = Control(tmp_path), []
    for wish in ("pause", "stop"):
        control.request(wish)
        os.utime(control.path, (1e9, 1e9))
        list(walk(tmp_path / wish, 3, None, control, seen))
    assert seen == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"action": "explode"}', "\x00"])
def test_an_unreadable_wish_means_run(tmp_path, text):
    control = Control(tmp_path)
    control.path.write_text(text)
    assert control.read() == "run" == control.wait()


def test_an_unknown_wish_is_refused(tmp_path):
    with pytest.raises(ValueError, match="pause, resume or stop"):
        Control(tmp_path).request("explode")


FILES = ("tensors.safetensors", "state.json", "hashes.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "emptied", "{}"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, name, damage):
    expected = [value for value, _ in walk(tmp_path, 9)]
    file = tmp_path / "step-000000009" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes({"flipped": content, "cut": content[:-9], "emptied": b"", "{}": b"{}"}[damage])
    with pytest.warns(UserWarning, match="step-000000009 is damaged"):
        rest = [value for value, _ in walk(tmp_path, 9)]
    assert rest == expected[6:]
    assert Checkpointer(tmp_path).latest()["step"] == 9, "and it was written anew"


def test_when_all_are_damaged_nothing_begins_anew_by_itself(tmp_path):
    list(walk(tmp_path, 9))
    for folder in tmp_path.glob("step-*"):
        (folder / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(CheckpointError, match="delete the folder"):
        next(walk(tmp_path, 9))
    assert steps_of(tmp_path) == [6, 9]


def test_after_a_fall_back_two_whole_checkpoints_are_kept(tmp_path):
    list(walk(tmp_path, 9))
    (tmp_path / "step-000000009" / "state.json").unlink()
    with pytest.warns(UserWarning, match="damaged"):
        records = walk(tmp_path, 20, every=1)
        next(records), next(records)
    assert steps_of(tmp_path) == [6, 7], "the damaged one, of a later step, does not count among the two kept"
    records.close()


def test_an_iterator_left_behind_does_not_write_over_its_successor(tmp_path):
    """An interrupted cell is run again: its old iterator lives on in the traceback and is closed at some later time."""
    expected = [value for value, _ in walk(tmp_path / "whole", 9)]
    left_behind = walk(tmp_path / "a", 9)
    for _ in range(5):
        next(left_behind)
    records = walk(tmp_path / "a", 9)
    values = [next(records)[0]]
    left_behind.close()
    assert steps_of(tmp_path / "a") == [3]
    values += [value for value, _ in records]
    assert values == expected[3:] and steps_of(tmp_path / "a") == [6, 9]


def test_an_iterator_that_was_taken_over_is_refused_when_it_goes_on(tmp_path):
    old = walk(tmp_path, 9)
    next(old)
    new = walk(tmp_path, 9)
    next(new)
    with pytest.raises(CheckpointError, match="newer loop"):
        list(old)
    assert len(list(new)) == 8


def two_checkpoints(folder: Path) -> Checkpointer:
    checkpointer = Checkpointer(folder)
    for step in (3, 6):
        checkpointer.save(step, {"value": torch.full((1000,), float(step))})
    return checkpointer


def survives(checkpointer: Checkpointer, caught: pytest.ExceptionInfo) -> None:
    text = str(caught.value)
    assert "after step 9" in text and "step-000000006 is unharmed" in text and "start the same command again" in text
    assert sorted(p.name for p in checkpointer.folder.iterdir()) == ["step-000000003", "step-000000006"]
    found = Checkpointer(checkpointer.folder).latest()
    assert found["step"] == 6 and torch.equal(found["state"]["value"], torch.full((1000,), 6.0))


def test_a_disk_that_takes_no_more_leaves_the_checkpoint_before(tmp_path):
    """The kernel itself refuses: this process may write no file above 1 MB, the checkpoint has 4."""
    checkpointer, limits = two_checkpoints(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match="File too large") as caught:
            checkpointer.save(9, {"value": torch.zeros(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    survives(checkpointer, caught)
    checkpointer.save(9, {"value": torch.zeros(1_000_000)})
    assert checkpointer.latest()["step"] == 9


@pytest.mark.parametrize("name", ["state.json", "hashes.json"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, name):
    """The file lies on /dev/full, where the kernel answers every write with ENOSPC."""
    checkpointer, save_file = two_checkpoints(tmp_path), module.save_file

    def save_on_a_full_disk(tensors, path):
        save_file(tensors, path)
        path.with_name(name).symlink_to("/dev/full")

    monkeypatch.setattr(module, "save_file", save_on_a_full_disk)
    with pytest.raises(CheckpointError, match="the disk is full") as caught:
        checkpointer.save(9, {"value": torch.zeros(1000)})
    survives(checkpointer, caught)


@pytest.mark.parametrize("moment", ["save_file", "fsync", "rename"])
def test_full_at_any_moment_of_the_writing(tmp_path, monkeypatch, moment):
    """What safetensors says on a full disk, word for word, and the same from the system's own calls."""
    checkpointer = two_checkpoints(tmp_path)
    rust = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    error = rust if moment == "save_file" else OSError(errno.ENOSPC, "No space left on device")

    def full(*args):
        raise error

    monkeypatch.setattr(module.os if moment == "rename" else module, moment, full)
    with pytest.raises(CheckpointError, match="the disk is full") as caught:
        checkpointer.save(9, {"value": torch.zeros(1000)})
    survives(checkpointer, caught)


def test_a_damaged_checkpoint_is_not_called_unharmed(tmp_path, monkeypatch):
    checkpointer = two_checkpoints(tmp_path)
    (tmp_path / "step-000000006" / "state.json").write_text("{}")
    monkeypatch.setattr(module, "fsync", lambda path: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(CheckpointError, match="step-000000003 is unharmed"):
        checkpointer.save(9, {"value": torch.zeros(1000)})


def test_a_full_disk_before_the_first_checkpoint_says_that_there_is_none(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match="There is no earlier checkpoint"):
        Checkpointer(tmp_path).save(3, {})


def test_what_a_killed_process_left_half_written_is_cleaned_up(tmp_path):
    (tmp_path / ".writing").mkdir()
    (tmp_path / ".writing" / "tensors.safetensors").write_bytes(b"half")
    list(walk(tmp_path, 3))
    assert steps_of(tmp_path) == [3] and not (tmp_path / ".writing").exists()


def test_what_cannot_be_stored_is_named_and_nothing_is_written(tmp_path):
    checkpointer = two_checkpoints(tmp_path)
    with pytest.raises(TypeError, match="/parts/model"):
        checkpointer.save(9, {"parts": {"model": object()}})
    assert steps_of(tmp_path) == [3, 6]


def test_a_checkpoint_holds_no_pickle(tmp_path):
    list(walk(tmp_path, 3))
    (folder,) = tmp_path.glob("step-*")
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    assert json.loads((folder / "state.json").read_text())["step"] == 3
    assert (folder / "tensors.safetensors").read_bytes()[8:9] == b"{"


#: Another process that takes the lock as a trainer does, without the seconds that importing torch takes.
LOCKER = """
import fcntl, sys, time
lock = open(sys.argv[1] + "/.lock", "a+")
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("claimed", flush=True)
sys.stdin.read()
"""


def locker(folder: Path) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", LOCKER, str(folder)], text=True, **pipes)


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    other = locker(tmp_path)
    assert other.stdout.readline() == "claimed\n"
    with pytest.raises(CheckpointError, match="another process"):
        next(walk(tmp_path, 3))
    other.kill()
    other.communicate()
    assert len(list(walk(tmp_path, 3))) == 3, "the lock dies with its process"


@pytest.mark.parametrize("leave", ["end", "close", "refused"])
def test_the_folder_is_free_again_when_the_loop_ends(tmp_path, leave):
    """Also where the loop object lives on, as it does in a notebook's namespace."""
    records = walk(tmp_path, 3)
    _, loop = next(records)
    output, errors = locker(tmp_path).communicate("")
    assert output == "" and "BlockingIOError" in errors, "while it runs nobody else gets in"
    if leave == "end":
        list(records)
    records.close()
    if leave == "refused":
        loop = ResumableLoop({"x": Walk()}, 3, Checkpointer(tmp_path))
        with pytest.raises(CheckpointError), loop:
            pass
    assert locker(tmp_path).communicate("")[0] == "claimed\n" and loop is not None


def test_one_process_needs_no_accelerate(tmp_path):
    code = (
        "import sys\nfrom forgelib.core.loop import *\n"
        "with ResumableLoop({}, 3, Checkpointer(sys.argv[1]), Control(sys.argv[1])) as loop: list(loop)\n"
        "assert not {'accelerate', 'transformers', 'wandb', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
