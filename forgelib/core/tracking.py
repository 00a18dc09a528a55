"""Tracking: every record goes to metrics.jsonl, always; Weights & Biases is a mirror of it, offline by default."""

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

JOURNAL = "metrics.jsonl"
PROJECT = "agent-forge-v2"
MODES = ("offline", "online", "disabled")


class Tracker:
    """The journal of one run.

    Records are flat dicts with a whole number `step`. They are strict JSON: nan and infinity are stored as the texts
    "nan", "inf", "-inf". A torn last line, left by a kill in mid-write, is dropped when the journal is opened again.
    In the journal and in W&B every name but `step` carries `metrics_prefix` ("baking/loss"); who reads records gets
    them without it.
    wandb is imported only where `wandb_mode` asks for it; its files lie in the run folder and its run id is kept there,
    so a resumed run continues the same W&B run.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        run_name: str,
        config: dict | None = None,
        wandb_mode: str = "disabled",
        job_type: str | None = None,
        project: str = PROJECT,
        metrics_prefix: str = "",
    ):
        if wandb_mode not in MODES:
            raise ValueError(f"wandb_mode = {wandb_mode!r}: must be one of {', '.join(MODES)}")
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.path = self.run_dir / JOURNAL
        self.run_name, self.config, self.project, self.job_type = run_name, config or {}, project, job_type
        self.wandb_mode, self._wandb, self.metrics_prefix = wandb_mode, None, metrics_prefix
        self._keep_whole_lines()

    def log(self, record: dict) -> None:
        """Append one record; it is on its way to the disk when this returns."""
        if type(record.get("step")) is not int:  # True is an int, too
            raise ValueError(f"a record needs a whole number 'step'; got {record.get('step')!r}")
        named = self._named(record)
        line = _line(named)
        with self.path.open("a", encoding="utf-8") as journal:
            journal.write(line)
        if self.wandb_mode != "disabled":
            numbers = {name: value for name, value in named.items() if name != "step"}
            self._start_wandb().log(numbers, step=record["step"])

    def follow(self, records: Iterator[dict]) -> Iterator[dict]:
        """Log every record of a procedure and hand it on.

        A procedure that goes on from a checkpoint gives the steps after it again: what the journal holds from the first
        of them on is dropped. Leaving early closes the procedure, which then saves.
        """
        first = True
        with contextlib.closing(records):
            for record in records:
                if first:
                    self.rewind(record["step"])
                    first = False
                self.log(record)
                yield record

    def rewind(self, step: int) -> None:
        """Drop the records of `step` and later: the run goes on from a checkpoint taken before them."""
        kept = [record for record in self.records() if record["step"] < step]
        self._write(kept)

    def records(self) -> list[dict]:
        """All records in order; "nan" and "inf" are numbers again."""
        return [record for line in self._lines() if (record := parse_record(line)) is not None]

    def save_artifact(self, path: Path, name: str, kind: str) -> None:
        """Mirror a published folder as a W&B artifact; nothing happens where W&B is disabled."""
        if self.wandb_mode == "disabled":
            return
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        with self._in_run_dir_and_quiet():
            for file in (p for p in sorted(Path(path).rglob("*")) if p.is_file()):
                artifact.add_file(str(file), name=file.relative_to(path).as_posix())  # add_dir would print
            self._start_wandb().log_artifact(artifact)

    def finish(self) -> None:
        """Close the W&B run, if one was started."""
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def _start_wandb(self):
        if self._wandb is None:
            import wandb

            known = self.run_dir / "wandb_id"
            run_id = known.read_text().strip() if known.is_file() else secrets.token_hex(4)
            known.write_text(run_id)
            with self._in_run_dir_and_quiet():
                self._wandb = wandb.init(
                    project=self.project,
                    name=self.run_name,
                    id=run_id,
                    config=self.config,
                    mode=self.wandb_mode,
                    job_type=self.job_type,
                    dir=str(self.run_dir),
                    resume="allow",
                    reinit="create_new",  # a notebook has several runs; the default would end the one before
                    settings=wandb.Settings(silent=True, console="off", save_code=False, x_disable_stats=True),
                )
        return self._wandb

    @contextlib.contextmanager
    def _in_run_dir_and_quiet(self) -> Iterator[None]:
        """W&B keeps copies of models and logs in the home folder, and advertises where it sees a client of a language
        model, unless these variables say otherwise."""
        chosen = {name: str(self.run_dir / "wandb") for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")}
        chosen["WANDB_DISABLE_WEAVE"] = "true"
        before = {name: os.environ.get(name) for name in chosen}
        os.environ.update({name: before[name] or folder for name, folder in chosen.items()})
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def _named(self, record: dict) -> dict:
        return {name if name == "step" else self.metrics_prefix + name: value for name, value in record.items()}

    def _lines(self) -> list[str]:
        return self.path.read_text(encoding="utf-8", errors="replace").split("\n") if self.path.is_file() else []

    def _keep_whole_lines(self) -> None:
        lines = [line for line in self._lines() if line]
        whole = self.records()
        if len(whole) != len(lines) or (self.path.is_file() and lines and not self.path.read_bytes().endswith(b"\n")):
            self._write(whole)

    def _write(self, records: list[dict]) -> None:
        temporary = self.path.with_suffix(".jsonl.new")
        with temporary.open("w", encoding="utf-8") as journal:
            journal.writelines(_line(self._named(record)) for record in records)
            journal.flush()
            os.fsync(journal.fileno())
        os.replace(temporary, self.path)


def read_journal(path: Path | str) -> list[dict]:
    """The records of a metrics.jsonl anywhere, for plots; names without the prefix of their phase."""
    lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    return [record for line in lines if (record := parse_record(line)) is not None]


def _line(record: dict) -> str:
    """Strict JSON. Raises ValueError naming the field that is none."""
    plain = {name: _plain(value) for name, value in record.items()}
    try:
        return json.dumps(plain, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        wrong = next((name for name, value in plain.items() if not _is_json(value)), "?")
        raise ValueError(
            f"field '{wrong}' of the record of step {record['step']}: {error}; log plain numbers"
        ) from None


def _is_json(value) -> bool:
    with contextlib.suppress(TypeError, ValueError):
        json.dumps(value, allow_nan=False)
        return True
    return False


def _plain(value):
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def parse_record(line: str) -> dict | None:
    """A journal's line as a record: names without their phase's prefix, "nan" and "inf" as the numbers they are. None
    for a line that is no whole record."""
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            plain = {name.rpartition("/")[2]: value for name, value in record.items()}
            return {name: float(v) if v in ("nan", "inf", "-inf") else v for name, v in plain.items()}
    return None
