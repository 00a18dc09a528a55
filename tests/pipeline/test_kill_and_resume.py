"""Killed at any moment and started again, a run ends with the same bits as one that was left alone."""

import random
import time
from pathlib import Path

import pytest
import tiny_run
from safetensors.torch import load_file

from forgelib.core.loop import Checkpointer, Control
from forgelib.core.state import same_bits
from forgelib.core.tracking import read_journal

STEPS, PACE = 200, 0.006


def journal(folder: Path) -> list[dict]:
    file = folder / "metrics.jsonl"
    return read_journal(file) if file.is_file() else []


def wait_until(process, condition) -> None:
    while not condition():
        assert process.is_alive(), "the training ended too early"
        time.sleep(0.001)


def wait_for_quiet(folder: Path) -> int:
    """Until nothing was logged for a hundred steps' time; returns how much is there."""
    before = -1
    while before != (before := len(journal(folder))):
        time.sleep(100 * PACE)
    return before


def finish(folder: Path, launch, *more) -> None:
    """Run to the end in a fresh process."""
    process = launch(tiny_run.run, folder, STEPS, *more)
    process.join(60)
    assert process.exitcode == 0


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    assert same_bits(load_file(folder / "final.safetensors"), load_file(undisturbed / "final.safetensors"))
    assert journal(folder) == journal(undisturbed), "a record is missing, double or different"
    assert len(list((folder / "checkpoints").glob("step-*"))) == 2
    assert not list((folder / "checkpoints").glob(".writing*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    tiny_run.run(folder, STEPS)
    return folder


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path, launch, undisturbed):
    dice, places = random.Random(0), set()
    for _ in range(10):
        process = launch(tiny_run.run, tmp_path, STEPS, 7, PACE)
        target = len(journal(tmp_path)) + dice.randint(-3, 18)
        wait_until(process, lambda target=target: len(journal(tmp_path)) >= target)
        time.sleep(dice.uniform(0.0, 2 * PACE))
        process.kill()
        process.join()
        assert not (tmp_path / "final.safetensors").exists(), "it ended before the kill"
        places.add(len(journal(tmp_path)))
    assert len(places) > 5, "the kills fell on too few different steps"
    finish(tmp_path, launch)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.slow
def test_kills_in_the_writing_of_a_checkpoint(tmp_path, launch):
    """A checkpoint after every step, and large ones: most of the time is writing."""
    folder, reference, dice = tmp_path / "killed", tmp_path / "reference", random.Random(1)
    reference.mkdir()
    tiny_run.run(reference, 30, 1, 0.0, 2000)
    half_written = 0
    for _ in range(8):
        process = launch(tiny_run.run, folder, 30, 1, 0.0, 2000)
        wait_until(process, (folder / "checkpoints" / ".writing").exists)
        time.sleep(dice.uniform(0.0, 0.01))
        process.kill()
        process.join()
        half_written += (folder / "checkpoints" / ".writing").exists()
        checkpointer = Checkpointer(folder / "checkpoints")
        checkpointer.latest()
        assert checkpointer.skipped == [], "a kill never leaves a damaged checkpoint under its final name"
    assert half_written, "no kill fell into the writing: the test tested nothing"
    tiny_run.run(folder, 30, 1, 0.0, 2000)
    assert_same_run(folder, reference)


@pytest.mark.slow
def test_paused_resumed_and_stopped_from_another_process(tmp_path, launch, undisturbed):
    control, process = Control(tmp_path), launch(tiny_run.run, tmp_path, STEPS, 7, PACE)
    wait_until(process, lambda: len(journal(tmp_path)) > 20)
    control.request("pause")
    paused_at = wait_for_quiet(tmp_path)
    assert process.is_alive() and paused_at < STEPS, "it went on in spite of the pause"
    control.request("resume")
    wait_until(process, lambda: len(journal(tmp_path)) > paused_at + 5)
    control.request("stop")
    process.join(10)
    assert process.exitcode == 0 and not (tmp_path / "final.safetensors").exists()
    assert Checkpointer(tmp_path / "checkpoints").latest()["step"] == len(journal(tmp_path)) < STEPS
    finish(tmp_path, launch)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_kill_while_paused_is_followed_by_a_run_that_runs(tmp_path, launch, undisturbed):
    process = launch(tiny_run.run, tmp_path, STEPS, 7, PACE)
    wait_until(process, lambda: len(journal(tmp_path)) > 20)
    Control(tmp_path).request("pause")
    wait_for_quiet(tmp_path)
    process.kill()
    process.join()
    finish(tmp_path, launch)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "hashes.json"])
def test_a_damaged_newest_checkpoint_costs_steps_and_no_bits(tmp_path, launch, undisturbed, file):
    process = launch(tiny_run.run, tmp_path, STEPS, 7, PACE)
    wait_until(process, lambda: len(journal(tmp_path)) > 30)
    process.kill()
    process.join()
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    content = bytearray((newest / file).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / file).write_bytes(content)
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged"):
        assert 0 < Checkpointer(tmp_path / "checkpoints").latest()["step"] < int(newest.name[5:])
    finish(tmp_path, launch)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.slow
def test_a_second_process_is_refused_and_does_no_harm(tmp_path, launch, undisturbed):
    first, control = launch(tiny_run.run, tmp_path, STEPS, 7, PACE), Control(tmp_path)
    wait_until(first, lambda: len(journal(tmp_path)) > 10)
    control.request("pause")
    second = launch(tiny_run.run, tmp_path, STEPS)
    second.join(60)
    assert second.exitcode == 1 and first.is_alive()
    control.request("resume")
    first.join(60)
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["rng", "batches", "optimizer"])
def test_the_comparison_sees_a_checkpoint_that_forgot_something(tmp_path, undisturbed, what):
    records = tiny_run.train(tmp_path, STEPS)
    for _ in range(50):
        next(records)
    records.close()
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    found = checkpointer.latest()
    content = found["state"]
    if what == "rng":
        content["rng"][0]["torch"][40] ^= 1
    elif what == "batches":
        content["parts"]["batches"]["generator"][40] ^= 1
    else:
        content["parts"]["optimizer"]["state"][0]["exp_avg"].zero_()
    checkpointer.save(found["step"], content)
    tiny_run.run(tmp_path, STEPS)
    assert not same_bits(load_file(tmp_path / "final.safetensors"), load_file(undisturbed / "final.safetensors"))
