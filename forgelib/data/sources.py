"""Where rows come from: a local mirror, then the Hugging Face cache or hub, then a procedural twin.

A place that has no such dataset is passed over and the reason kept; a place that has it broken is an error, never a
reason to go on.
"""

import gzip
import hashlib
import itertools
import json
import os
import random
import re
import socket
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import getproxies

from forgelib.data import DataError, DatasetSpec, Example, NoSuchPart, RowError

PARTS = ("train", "heldout", "test")
SOURCES = ("auto", "real", "procedural")
#: One row in HELDOUT_ONE_IN is held out where a dataset has no split of its own for it.
HELDOUT_ONE_IN = 10
HUB_TIMEOUT_S = 3.0

#: (part, number of examples, seed) -> examples
Twin = Callable[[str, int, int], list[Example]]


class HubError(DataError):
    """The hub did not give the rows."""


@dataclass(frozen=True)
class Rows:
    """Examples of one part of one dataset. `origin` names the file, hub id or generator; `passed_over` says why no
    earlier place was used."""

    examples: list[Example]
    dataset: str
    part: str
    source: str
    origin: str
    split: str
    passed_over: str = ""


def split_plan(part: str, available: Iterable[str]) -> tuple[str, str]:
    """(split to read, which of its rows: "all", "keep" or "cut") for `part`, given the splits that are there.

    Training reads train, or validation where there is no train. Held-out rows come from validation where training
    leaves it alone; else one row in ten, chosen by a hash of its prompt, is cut from what training reads. The test
    split is read for part "test" alone.
    """
    splits = set(available)
    if part not in PARTS:
        raise DataError(f"there is no part '{part}'; choose one of {', '.join(PARTS)}")
    if part == "test":
        if "test" not in splits:
            raise NoSuchPart(f"there is no test split with answers; there is {', '.join(sorted(splits)) or 'none'}")
        return "test", "all"
    if "train" not in splits and "validation" not in splits:
        raise DataError(
            f"neither a train nor a validation split is there, only {', '.join(sorted(splits)) or 'nothing'}; "
            "a test split is never trained on"
        )
    learned = "train" if "train" in splits else "validation"
    if learned == "train" and "validation" in splits:
        return ("train" if part == "train" else "validation"), "all"
    return learned, "keep" if part == "train" else "cut"


def is_cut(prompt: str) -> bool:
    """Whether a prompt belongs to the one row in ten that is held out; the same on every machine.

    Questions on one passage stay together: what decides is the text before the question, where there is any.
    """
    context = prompt.rpartition("\nQuestion: ")[0] or prompt
    return hashlib.sha256(context.encode()).digest()[0] % HELDOUT_ONE_IN == 0


def load_rows(
    spec: DatasetSpec,
    part: str,
    *,
    twin: Twin,
    source: str = "auto",
    mirror: Path | None = None,
    hub: "Hub | None" = None,
    limit: int | None = None,
    seed: int = 0,
) -> Rows:
    """Rows of `part` ("train", "heldout", "test") of one dataset, at most `limit`.

    source "procedural" asks the twin alone; "real" asks the mirror, then the hub, and raises DataError naming both
    when neither has it; "auto" asks the twin last. From a mirror a seeded sample is taken, from the hub the first rows.
    """
    if source not in SOURCES:
        raise DataError(f"source is '{source}'; choose one of {', '.join(SOURCES)}")
    passed = []
    if source != "procedural":
        folder, why_not = find_folder(spec, mirror)
        if folder is not None:
            return read_mirror(spec, folder, part, limit, seed)
        passed.append(why_not)
        try:
            return (hub or Hub()).rows(spec, part, limit, "; ".join(passed))
        except HubError as error:
            passed.append(str(error))
        if source == "real" and spec.optional:
            return Rows([], spec.name, part, "absent", "nowhere", part, f"optional; {'; '.join(passed)}")
        if source == "real":
            raise DataError(
                f"no real rows of {spec.name}. Looked in two places: {'; '.join(passed)}. "
                "Put them in one of the two, or allow the procedural twin: source 'auto' (--data auto where a "
                "command takes it)."
            )
    examples = twin(part, limit or 1000, seed)
    return Rows(examples, spec.name, part, "procedural", f"twin of {spec.name}, seed {seed}", part, "; ".join(passed))


def find_folder(spec: DatasetSpec, mirror: Path | None) -> tuple[Path | None, str]:
    """The dataset's folder in the mirror, or None and why."""
    if mirror is None:
        return None, "mirror: none is set (FORGE_DATASETS)"
    if not mirror.is_dir():
        raise DataError(f"the mirror {mirror} is no folder: correct FORGE_DATASETS or leave it unset")
    for name in spec.folders:
        if (mirror / name).is_dir():
            return mirror / name, ""
    return None, f"mirror: {mirror} has no folder {' or '.join(spec.folders)}"


def read_mirror(spec: DatasetSpec, folder: Path, part: str, limit: int | None, seed: int) -> Rows:
    """Rows of `part` from `<folder>/<split>.jsonl.gz`."""
    available = {path.name.removesuffix(".jsonl.gz") for path in folder.glob("*.jsonl.gz")}
    try:
        split, which = split_plan(part, available)
    except DataError as error:
        raise type(error)(f"{folder}: {error}. Expected files named <split>.jsonl.gz.") from None
    path = folder / f"{split}.jsonl.gz"
    rows = _documents(read_file(spec, path), spec.starts_document)
    examples = [example for example in rows if _wanted(example, which)]
    order = random.Random(f"{seed}/{spec.name}/{part}").sample(range(len(examples)), len(examples))
    chosen = [examples[index] for index in order[:limit]]
    return Rows(chosen, spec.name, part, "mirror", f"{folder.name}/{path.name}", _split_name(split, which))


def read_file(spec: DatasetSpec, path: Path) -> Iterator[Example]:
    """The examples of one file. Raises DataError naming file, line and field, and what to do."""
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):  # noqa: B007
                yield spec.to_example(json.loads(line), "mirror")
    except RowError as error:
        raise DataError(
            f"{path}, line {number}: field '{error.field}' {error.problem}. "
            f"Rows must be as in {spec.hf_id} on the Hugging Face hub: copy the file anew."
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not JSON ({error.msg} at character {error.pos}). "
            "Each line must be one JSON object."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, after line {number}: not UTF-8 ({error.reason}). Write the file anew as UTF-8."
        ) from error
    except EOFError as error:
        raise DataError(
            f"{path}, after line {number}: the gzip stream ends too early, the file is truncated. Copy it anew."
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}, after line {number}: not a sound gzip file ({error}). Compress the file with gzip."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    if number == 0:
        raise DataError(f"{path} holds no rows. Copy it anew or remove it.")


def _documents(examples: Iterator[Example], starts: str) -> Iterator[Example]:
    """The examples that have text; where rows are lines, a document's lines joined (`starts` matches its first)."""
    if not starts:
        yield from (example for example in examples if example.text.strip())
        return
    lines: list[str] = []
    example = None
    for example in examples:
        if re.match(starts, example.prompt) and any(line.strip() for line in lines):
            yield replace(example, prompt="".join(lines))
            lines = []
        lines.append(example.prompt)
    if example is not None and any(line.strip() for line in lines):
        yield replace(example, prompt="".join(lines))


def _wanted(example: Example, which: str) -> bool:
    return which == "all" or is_cut(example.prompt) == (which == "cut")


def _split_name(split: str, which: str) -> str:
    return {"all": split, "keep": f"{split}, nine tenths", "cut": f"{split}, one tenth"}[which]


class Hub:
    """The Hugging Face cache and hub through `datasets`. Once unreachable, it is not tried again by this object.

    With HF_HUB_OFFLINE=1 only the cache is read. Else the hub must answer within `timeout_s`, so that a machine
    without network does not wait.
    """

    def __init__(self, timeout_s: float = HUB_TIMEOUT_S):
        self.timeout_s = timeout_s
        self.unreachable: str | None = None

    def rows(self, spec: DatasetSpec, part: str, limit: int | None, passed_over: str = "") -> Rows:
        """The first `limit` rows of `part`. Raises HubError when they cannot be had, DataError when a row is not as it
        should be."""
        try:
            split, which = split_plan(part, spec.splits)
        except DataError as error:
            raise type(error)(f"{spec.hf_id}: {error}") from None
        rows = _documents(self._examples(spec, split), spec.starts_document)
        examples = list(itertools.islice((one for one in rows if _wanted(one, which)), limit))
        origin = spec.hf_id + (f" ({spec.config})" if spec.config else "")
        return Rows(examples, spec.name, part, "hub", origin, _split_name(split, which), passed_over)

    def _examples(self, spec: DatasetSpec, split: str) -> Iterator[Example]:
        for index, row in enumerate(self._open(spec, split)):
            try:
                yield spec.to_example(row, "hub")
            except RowError as error:
                raise DataError(
                    f"{spec.hf_id}, split {split}, row {index}: field '{error.field}' {error.problem}."
                ) from error

    def _open(self, spec: DatasetSpec, split: str) -> Iterable[dict]:
        if self.unreachable is None:
            self.unreachable = "" if _offline() else probe(self.timeout_s)
        if self.unreachable:
            raise HubError(f"hub: {self.unreachable}")
        import datasets
        import httpx

        try:
            rows = datasets.load_dataset(spec.hf_id, spec.config, split=split, streaming=spec.streamed)
            first = list(itertools.islice(iter(rows), 1))  # a stream asks the hub only now
        except (OSError, ValueError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise HubError(f"hub: {spec.hf_id} cannot be had ({cause})") from error
        if not first:
            raise DataError(f"{spec.hf_id}, split {split}, is empty.")
        return rows


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def probe(timeout_s: float) -> str:
    """Why the hub (or the proxy before it) accepts no connection within `timeout_s`; "" when it does. The name look-up
    is bounded too."""
    from huggingface_hub import constants

    address = urlparse(getproxies().get("https") or constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    outcome = [
        f"{address.hostname} did not answer within {timeout_s:g} s; with HF_HUB_OFFLINE=1 the cache alone is read"
    ]

    def connect() -> None:
        try:
            socket.create_connection((address.hostname, port), timeout=timeout_s).close()
            outcome[0] = ""
        except OSError as error:
            outcome[0] = f"{address.hostname} is not reachable ({error}); with HF_HUB_OFFLINE=1 the cache alone is read"

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return outcome[0]
