"""The resumable loop: checkpoints that survive anything, and a hand on the brake from outside.

    with ResumableLoop(parts, total_steps, checkpointer, control) as loop:
        for step in loop:
            ...

`parts` are objects with state_dict and load_state_dict. Killed at any moment and started again, the loop ends with the
same bits: weights, optimizer, random numbers, data cursor and whatever else is a part are restored together.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from forgelib.core import rng, state

ACTIONS = ("run", "pause", "stop")
POLL_SECONDS = 0.2


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the text says which one survives and what to do."""


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

    def wait(self) -> str:
        """Once a step: returns "run" or "stop", after sitting out a pause. A stop is taken back when it was seen."""
        while (action := self.read()) == "pause":
            time.sleep(POLL_SECONDS)
        if action == "stop":
            self.request("resume")
        return action


class Checkpointer:
    """Folders step-<n> below `folder`, each whole or not there, the newest `keep` of them.

    A checkpoint is due `every_steps` steps or `every_seconds` seconds after the last one, whichever comes first.
    """

    def __init__(
        self, folder: Path | str, every_steps: int | None = None, every_seconds: float | None = None, keep: int = 2
    ):
        self.folder = Path(folder)
        self.every_steps, self.every_seconds, self.keep = every_steps, every_seconds, keep
        self._last_step, self._last_time = 0, time.monotonic()
        self.skipped: list[str] = []

    def due(self, step: int) -> bool:
        """Whether to save after `step` steps are done."""
        by_steps = self.every_steps is not None and step - self._last_step >= self.every_steps
        by_time = self.every_seconds is not None and time.monotonic() - self._last_time >= self.every_seconds
        return by_steps or by_time

    def save(self, step: int, content: dict) -> None:
        """Write the checkpoint of `step` finished steps. Raises CheckpointError when the disk does not take it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors, meta = state.flatten(content)
        temporary = self.folder / f".writing-{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            save_file(state.storable(tensors), temporary / "tensors.safetensors")
            (temporary / "state.json").write_text(json.dumps({"step": step, "state": meta}))
            hashes = {name: _sha256(temporary / name) for name in ("tensors.safetensors", "state.json")}
            (temporary / "hashes.json").write_text(json.dumps(hashes))
            for file in (*temporary.iterdir(), temporary):
                _fsync(file)
            target = self.folder / f"step-{step:09d}"
            shutil.rmtree(target, ignore_errors=True)
            os.rename(temporary, target)
            _fsync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(self._explain(step, error)) from error
        self._last_step, self._last_time = step, time.monotonic()
        for old in self._folders()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> dict | None:
        """The newest whole checkpoint, {"step": ..., "state": ...}, or None. Damaged ones are noted in `skipped`."""
        for folder in reversed(self._folders()):
            try:
                hashes = json.loads((folder / "hashes.json").read_text())
                damaged = [name for name, sha256 in hashes.items() if _sha256(folder / name) != sha256]
                if damaged:
                    raise ValueError(f"{damaged[0]} does not have its hash")
                stored = json.loads((folder / "state.json").read_text())
                tensors = load_file(folder / "tensors.safetensors")
            except (OSError, ValueError, SafetensorError) as error:
                self.skipped.append(f"{folder} is damaged ({error}); an earlier checkpoint is used")
                continue
            self._last_step = stored["step"]
            return {"step": stored["step"], "state": state.unflatten(tensors, stored["state"])}
        return None

    def _folders(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _explain(self, step: int, error: Exception) -> str:
        survivors = self._folders()
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        cause = "the disk is full" if full else str(error)
        kept = f"The checkpoint {survivors[-1]} is unharmed" if survivors else "There is no earlier checkpoint"
        return (
            f"the checkpoint after step {step} could not be written to {self.folder}: {cause}. {kept}; "
            "free some space and start the same command again to go on from there."
        )


class ResumableLoop:
    """Steps `start_step` .. `total_steps` - 1, with checkpoints between them.

    A stop request ends the iteration after a checkpoint, with `stopped` True. Leaving the block early at a step's end
    (the consumer of an iterator stops reading) saves too; an error inside a step does not: its step is not done.
    With an accelerator only the main process writes, and every process has its own random numbers restored.
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
        self.stopped, self.extra = False, {}

    def __enter__(self) -> "ResumableLoop":
        found = self.checkpointer.latest()
        if found is None:
            return self
        content = found["state"]
        if set(content["parts"]) != set(self.parts):
            raise CheckpointError(
                f"{self.checkpointer.folder} holds {sorted(content['parts'])}, this run needs {sorted(self.parts)}: "
                "it belongs to other code; delete the folder to begin anew"
            )
        for name, part in self.parts.items():
            part.load_state_dict(content["parts"][name])
        own = content["rng"][self._rank()] if self._rank() < len(content["rng"]) else content["rng"][0]
        rng.set_rng_state(own)
        self.extra, self.start_step, self.done = content["extra"], found["step"], found["step"]
        return self

    def __iter__(self) -> Iterator[int]:
        saved = self.start_step
        for step in range(self.start_step, self.total_steps):
            if self._asked() == "stop":
                self.stopped = True
                break
            yield step
            self.done = step + 1
            if self._agree(self.checkpointer.due(self.done)):
                self._save()
                saved = self.done
        if saved != self.done:
            self._save()

    def __exit__(self, kind, error, trace) -> None:
        if kind is GeneratorExit and self.done < self.total_steps:
            self.done += 1  # the consumer left after its record of this step, which is complete
            self._save()

    def _save(self) -> None:
        states = self._gather_rng()
        if self.accelerator is None or self.accelerator.is_main_process:
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
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return self.control.wait()
        return "stop" if self._agree(self.accelerator.is_main_process and self.control.wait() == "stop") else "run"

    def _agree(self, mine: bool) -> bool:
        """What the main process decides, on every process."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return mine
        from accelerate.utils import broadcast_object_list

        return bool(broadcast_object_list([mine])[0])

    def _rank(self) -> int:
        return 0 if self.accelerator is None else self.accelerator.process_index


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
