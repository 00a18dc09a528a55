"""The resumable loop: checkpoints that survive anything, and a hand on the brake from outside.

    with ResumableLoop(parts, total_steps, checkpointer, control) as loop:
        for step in loop:
            ...

`parts` are objects with state_dict and load_state_dict. Killed at any moment and started again, the loop ends with the
same bits: weights, optimizer, random numbers, data cursor and whatever else is a part are restored together.
"""

import errno
import fcntl
import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from forgelib.core import rng, state
from forgelib.core.artifacts import file_sha256, fsync

ACTIONS = ("run", "pause", "stop")
POLL_SECONDS = 0.2
TENSORS, STATE, HASHES = "tensors.safetensors", "state.json", "hashes.json"


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the text says which one survives and what to do."""


class RunStopped(RuntimeError):
    """A training was stopped from outside; its checkpoint is kept."""

    def __init__(self, done: int, total: int):
        super().__init__(f"stopped on request after step {done} of {total}: start it again to go on from there")


class Control:
    """Pause, resume or stop a run from outside, through the file control.json of its folder."""

    def __init__(self, run_dir: Path | str):
        self.path = Path(run_dir) / "control.json"

    def request(self, action: str) -> None:
        """Ask for "pause", "resume" or "stop"; the trainer obeys at its next step."""
        action = "run" if action == "resume" else action
        if action not in ACTIONS:
            raise ValueError(f"action = {action!r}: must be pause, resume or stop")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".control-{os.getpid()}")
        temporary.write_text(json.dumps({"action": action}))
        os.replace(temporary, self.path)

    def read(self) -> str:
        """What is asked for now: run, pause or stop. An unreadable file means run."""
        try:
            action = json.loads(self.path.read_text())["action"]
        except (OSError, ValueError, KeyError, TypeError):
            return "run"
        return action if action in ACTIONS else "run"

    def wait(self, agree: Callable[[str], str] = str) -> str:
        """Once a step: "run" or "stop", after sitting out a pause. `agree` makes several processes see the same."""
        while (action := agree(self.read())) == "pause":
            time.sleep(POLL_SECONDS)
        return action

    def forget_old(self) -> None:
        """Drop a request from before this process started: starting the run again is the newer wish.

        A start is known to the second, rounded down; in its first second nobody can have seen the run yet.
        """
        if self.path.is_file() and self.path.stat().st_mtime < psutil.Process().create_time() + 1:
            self.request("resume")


class Checkpointer:
    """Folders step-<n> below `folder`, each whole or not there, the newest `keep` of them.

    A checkpoint is due `every_steps` steps or `every_seconds` seconds after the last one, whichever comes first.
    `skipped` tells of damaged checkpoints that were passed over.
    """

    def __init__(
        self, folder: Path | str, every_steps: int | None = None, every_seconds: float | None = None, keep: int = 2
    ):
        for name, value in (("every_steps", every_steps), ("every_seconds", every_seconds), ("keep", keep)):
            if value is not None and value <= 0:
                raise ValueError(f"{name} = {value}: must be above 0")
        self.folder = Path(folder)
        self.every_steps, self.every_seconds, self.keep = every_steps, every_seconds, keep
        self._last_step, self._last_time = 0, time.monotonic()
        self._lock, self._token = None, uuid.uuid4().hex
        self.skipped: list[str] = []
        self._damaged: set[Path] = set()

    def claim(self) -> None:
        """Make this the only one that saves here, until `release` or the end of the process.

        Raises CheckpointError where another process trains here. Within a process the last claim counts: a cell that
        is run again takes over from the iterator that it left behind.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / ".lock").open("a+")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            lock.close()
            raise CheckpointError(
                f"another process is training in {self.folder}: wait for it, or stop it with `forge stop`"
            ) from None
        lock.truncate(0)
        lock.write(self._token)
        lock.flush()
        self._lock = lock

    def mine(self) -> bool:
        """Whether nobody claimed the folder after this did."""
        if self._lock is None:
            return True
        self._lock.seek(0)
        return self._lock.read() == self._token

    def release(self) -> None:
        """Let others train here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps are done."""
        by_steps = self.every_steps is not None and step - self._last_step >= self.every_steps
        by_time = self.every_seconds is not None and time.monotonic() - self._last_time >= self.every_seconds
        return by_steps or by_time

    def save(self, step: int, content: dict) -> None:
        """Write the checkpoint of `step` finished steps. Raises CheckpointError when the disk does not take it."""
        if not self.mine():
            raise CheckpointError(f"a newer loop of this process trains in {self.folder}; this one no longer counts")
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors, meta = state.flatten(content)
        temporary = self.folder / ".writing"  # also what a killed process left half-written
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            save_file(state.storable(tensors), temporary / TENSORS)
            (temporary / STATE).write_text(json.dumps({"step": step, "state": meta}))
            hashes = {name: file_sha256(temporary / name) for name in (TENSORS, STATE)}
            (temporary / HASHES).write_text(json.dumps(hashes))
            for file in (*temporary.iterdir(), temporary):
                fsync(file)
            target = self.folder / f"step-{step:09d}"
            shutil.rmtree(target, ignore_errors=True)
            os.rename(temporary, target)
            fsync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(self._explain(step, error)) from error
        self._last_step, self._last_time = step, time.monotonic()
        self._damaged.discard(target)
        past = [folder for folder in self._folders() if folder <= target and folder not in self._damaged]
        for old in set(self._folders()) - set(past[-self.keep :]):  # a later one was damaged, and passed over
            shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> dict | None:
        """The newest whole checkpoint, {"step": ..., "state": ...}, or None where there is none.

        Damaged ones are passed over with a warning. Raises CheckpointError when all are damaged.
        """
        for folder in reversed(self._folders()):
            if damage := _damage(folder):
                self._damaged.add(folder)
                self.skipped.append(f"checkpoint {folder} is damaged ({damage}) and passed over")
                warnings.warn(self.skipped[-1], stacklevel=2)
                continue
            stored, tensors = json.loads((folder / STATE).read_text()), load_file(folder / TENSORS)
            self._last_step = stored["step"]
            return {"step": stored["step"], "state": state.unflatten(tensors, stored["state"])}
        if self._folders():
            raise CheckpointError(f"no checkpoint in {self.folder} is whole; delete the folder to begin anew")
        return None

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _explain(self, step: int, error: Exception) -> str:
        survivors = [folder for folder in self._folders() if not _damage(folder)]
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        cause = "the disk is full" if full else str(error)
        kept = f"The checkpoint {survivors[-1]} is unharmed" if survivors else "There is no earlier checkpoint"
        return (
            f"the checkpoint after step {step} could not be written to {self.folder}: {cause}. {kept}; "
            "free some space and start the same command again to go on from there."
        )


class ResumableLoop:
    """Steps `start_step` .. `total_steps` - 1, with checkpoints between them.

    A stop request ends the iteration after a checkpoint, with `stopped` True. Closing a generator whose loop body ends
    in its `yield` (the consumer stops reading) saves too: that step is done. An error or `break` inside a step does
    not save: its step is not done. `extra` is a dict of plain values kept with the checkpoints.
    With an accelerator only the main process writes, and every process has its own random numbers restored; parts hold
    the same state on every process.
    """

    def __init__(
        self,
        parts: dict,
        total_steps: int,
        checkpointer: Checkpointer,
        control: Control | None = None,
        accelerator=None,
    ):
        self.parts, self.total_steps = parts, total_steps
        self.checkpointer, self.control, self.accelerator = checkpointer, control, accelerator
        self.start_step = self.done = 0
        self.stopped, self._in_step, self.extra = False, False, {}

    def __enter__(self) -> "ResumableLoop":
        if self._is_main():
            self.checkpointer.claim()
            if self.control is not None:
                self.control.forget_old()
        try:
            found = self.checkpointer.latest()
            if found is not None:
                self._restore(found["step"], found["state"])
        except BaseException:
            self.checkpointer.release()
            raise
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()  # nobody writes while somebody still reads
        return self

    def _restore(self, step: int, content: dict) -> None:
        if set(content["parts"]) != set(self.parts):
            raise CheckpointError(
                f"{self.checkpointer.folder} holds {sorted(content['parts'])}, this run needs {sorted(self.parts)}: "
                "it belongs to other code; delete the folder to begin anew"
            )
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        rank = 0 if self.accelerator is None else self.accelerator.process_index
        if rank >= len(content["rng"]):
            raise CheckpointError(
                f"{self.checkpointer.folder} was written by {len(content['rng'])} processes, this run has more: "
                "start it with as many, or delete the folder to begin anew"
            )
        rng.set_rng_state(content["rng"][rank])
        self.extra, self.start_step, self.done = content["extra"], step, step

    def __iter__(self) -> Iterator[int]:
        saved = self.start_step
        for step in range(self.start_step, self.total_steps):
            if self._asked() == "stop":
                self.stopped = True
                break
            self._in_step = True
            yield step
            self._in_step, self.done = False, step + 1
            if self._agree(self.checkpointer.due(self.done)):
                self._save()
                saved = self.done
        if saved != self.done:
            self._save()

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is GeneratorExit and self._in_step and self._agree(self.checkpointer.mine()):
                self.done += 1  # the consumer left after the record of this step, which is complete
                self._save()
        finally:
            self.checkpointer.release()

    def _save(self) -> None:
        states = self._gather_rng()
        if self._is_main():
            parts = {name: part.state_dict() for name, part in self.parts.items()}
            self.checkpointer.save(self.done, {"parts": parts, "rng": states, "extra": self.extra})
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def _gather_rng(self) -> list[dict]:
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return [rng.rng_state()]
        from accelerate.utils import gather_object

        return gather_object([rng.rng_state()])

    def _asked(self) -> str:
        if self.control is None:
            return "run"
        action = self.control.wait(self._agree)
        if action == "stop" and self._is_main():
            self.control.request("resume")  # seen, so taken back
        return action

    def _agree(self, mine: Any) -> Any:
        """What the main process decides, on every process."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return mine
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([mine])[0]

    def _is_main(self) -> bool:
        return self.accelerator is None or self.accelerator.is_main_process


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint's folder; None when every file has its hash."""
    try:
        hashes = json.loads((folder / HASHES).read_text())
        wrong = [name for name in (TENSORS, STATE) if file_sha256(folder / name) != hashes[name]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"{wrong[0]} does not have its hash" if wrong else None
