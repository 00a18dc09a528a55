"""What commands share that work in a folder of their own: a flat file of settings, and a folder that is gone on in."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from forgelib.workbook.params import ParameterError

#: What a command was asked when it began its folder.
QUESTION = "asked.json"
#: What Checkpointer.claim holds in the folder that a process works in.
LOCK = ".lock"


def flat_settings(file: Path | None) -> dict[str, object]:
    """The `name: value` lines of a YAML file; none without a file. Raises ParameterError for anything else."""
    if file is None:
        return {}
    try:
        given = yaml.safe_load(file.read_text()) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ParameterError(f"--config {file}: cannot be read ({error})") from None
    if not isinstance(given, dict):
        raise ParameterError(f"--config {file}: must be a flat list of `name: value` lines")
    return {str(name): value for name, value in given.items()}


def check_place(out: Path) -> None:
    """Raises ParameterError where the folder to write to is a file, or cannot be made where it is asked for."""
    if (out.exists() or out.is_symlink()) and not out.is_dir():
        raise ParameterError(f"--out {out}: is a file; name a folder, which need not be there yet")
    there = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ParameterError(f"--out {out}: cannot be made, {there} is no folder that can be written to")


def free_folder(out: Path, resume: bool) -> None:
    """Raises ParameterError where the folder to write to is a file, or holds something and is not to be gone on in."""
    check_place(out)
    if not _begun(out):
        return
    if not resume:
        raise ParameterError(f"{out} holds something already: give --resume to go on there, or another folder")
    if not (out / QUESTION).is_file():
        raise ParameterError(f"--resume: nothing was begun in {out}, which holds something else: name another folder")


def same_question(folder: Path, facts: dict) -> None:
    """Note in the folder what is asked. Raises ParameterError where it was begun with something else.

    Where several processes may come to one folder, `alone_in` asks it of the one that works there.
    """
    file = folder / QUESTION
    if _begun(folder) and file.is_file() and (known := _asked_before(file)) != facts:
        changed = [name for name in facts if known.get(name) != facts[name]]
        raise ParameterError(f"{folder} was begun with another {', '.join(changed)}: choose another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{QUESTION}")
        temporary.write_text(json.dumps(facts, indent=1))
        temporary.replace(file)
    except OSError as error:
        raise ParameterError(f"--out {folder}: cannot be written ({error.strerror})") from None


def _asked_before(file: Path) -> dict:
    try:
        known = json.loads(file.read_text())
        if isinstance(known, dict):
            return known
    except (OSError, ValueError):
        pass
    raise ParameterError(f"{file} is damaged, so what was begun there is not known: choose another folder")


def files_of(model: Path) -> list[list]:
    """Name, size and time of a model's files: another model at the same place is another question."""
    files = sorted(file for file in model.iterdir() if file.is_file()) if model.is_dir() else [model]
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


@contextlib.contextmanager
def alone_in(folder: Path, facts: dict) -> Iterator[None]:
    """No other process works in the folder meanwhile, and what is asked there is this.

    Raises ParameterError where one does, and where it was begun with another question; neither changes anything there.
    """
    from forgelib.core.loop import Checkpointer, CheckpointError  # here: it loads torch

    place = Checkpointer(folder)
    try:
        place.claim()
    except CheckpointError:
        raise ParameterError(f"{folder}: another process is at work there: wait for it, or end it") from None
    except OSError as error:
        raise ParameterError(f"--out {folder}: cannot be written ({error.strerror})") from None
    try:
        same_question(folder, facts)
        yield
    finally:
        place.release()


def _begun(folder: Path) -> bool:
    """Whether there is work in the folder: the question alone is none."""
    return folder.is_dir() and any(child.name not in (QUESTION, f".{QUESTION}", LOCK) for child in folder.iterdir())
