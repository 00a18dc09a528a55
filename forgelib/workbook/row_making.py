"""`forge rows`: a file of reasoning rows by one of four makers, for 30_quietstar_bake's `reasoning_file`."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgelib.data import DataError, Vocabulary, vocabulary, worked_rows, write_rows
from forgelib.data.local_teacher import LocalTeacherConfig, write_with_local_model
from forgelib.data.openrouter import MODELS, OpenRouterConfig, write_with_openrouter
from forgelib.data.prepare import load_rows
from forgelib.data.traces import procedural_rows
from forgelib.workbook.command_folder import QUESTION, check_place, same_question
from forgelib.workbook.params import ParameterError
from forgelib.workbook.stages import Stages

ROWS = "rows.jsonl"
MAKERS = ("procedural", "openrouter", "local", "dataset")
#: The dataset whose rows come with worked solutions.
WORKED = "gsm8k"


@dataclass(frozen=True)
class Asked:
    """What the command line asked for. rows: in all, over strategies (and models); cost_limit: dollars."""

    out: Path
    maker: str
    rows: int
    vocabulary: str
    difficulty: int
    seed: int
    model: Path | None
    cost_limit: float


def make_rows(asked: Asked, say: Callable[[str], object]) -> Path:
    """The file of the rows, continued where its maker was interrupted; `say` is told of every request or batch.

    Raises ParameterError for an unknown maker or a missing model, and DataError as the makers do.
    """
    check_place(asked.out)
    if asked.maker not in MAKERS:
        raise ParameterError(f"--maker {asked.maker}: must be one of {', '.join(MAKERS)}")
    if (asked.maker == "local") != (asked.model is not None):
        raise ParameterError("--model names the folder of the model that writes: give it with --maker local, only then")
    words = vocabulary(asked.vocabulary)
    {"procedural": _procedural, "openrouter": _by_openrouter, "local": _by_local_model, "dataset": _worked}[
        asked.maker
    ](asked, words, say)
    return asked.out / ROWS


def _made_anew(asked: Asked) -> None:
    """Open the folder of a maker that makes all its rows anew. Raises ParameterError where it would write over the rows
    of another maker, seed, vocabulary or difficulty."""
    if (asked.out / ROWS).exists() and not (asked.out / QUESTION).exists():
        raise ParameterError(f"{asked.out} holds rows of another maker, not written over: choose another --out")
    names = ("maker", "vocabulary", "difficulty", "seed")
    same_question(asked.out, {name: getattr(asked, name) for name in names})


class Told:
    """How many rows there are of how many, with rate and time left, where there is a terminal."""

    def __init__(self, total: int):
        self.total, self.stages = total, None

    def __call__(self, record: Any) -> None:
        if sys.stderr.isatty():
            self.stages = self.stages or Stages("rows", start=record.rows - record.accepted)
            self.stages("", record.rows, self.total)


def _procedural(asked: Asked, words: Vocabulary, say: Callable[[str], object]) -> None:
    _made_anew(asked)
    levels = range(1, asked.difficulty + 1)
    rows = procedural_rows(asked.rows, words, seed=asked.seed, strategies=tuple(words.tag_of), difficulties=levels)
    write_rows(asked.out / ROWS, rows)
    say(f"{len(rows)} rows, every line checked")


def _worked(asked: Asked, words: Vocabulary, say: Callable[[str], object]) -> None:
    _made_anew(asked)
    rows = worked_rows(load_rows(WORKED, "train", source="real", limit=asked.rows, seed=asked.seed).examples, words)
    if not rows:
        raise DataError(f"{WORKED}: no row comes with a worked solution")
    write_rows(asked.out / ROWS, rows)
    say(f"{len(rows)} rows of {WORKED}, as its authors wrote them")


def _by_openrouter(asked: Asked, words: Vocabulary, say: Callable[[str], object]) -> None:
    strategies = tuple(words.tag_of)
    each = -(-asked.rows // (len(MODELS) * len(strategies)))
    config = OpenRouterConfig(
        strategies=strategies, rows_per_pair=each, rows_per_request=min(100, each), cost_limit=asked.cost_limit
    )
    told = Told(each * len(MODELS) * len(strategies))
    for record in write_with_openrouter(config, words, asked.out):
        if record.stopped:
            say(record.stopped)
            continue
        lost = "; ".join(f"{count} x {why}" for why, count in {**record.rejected, **record.faults}.items())
        say(
            f"{record.model} {record.strategy}: {record.accepted} of {record.asked} rows, ${record.dollars:.4f}, "
            f"{record.rows} rows and ${record.dollars_spent:.2f} in all" + (f" ({lost})" if lost else "")
        )
        told(record)


def _by_local_model(asked: Asked, words: Vocabulary, say: Callable[[str], object]) -> None:
    import forgelib.models  # noqa: F401 (registers Cognate with the Auto classes; here: it loads torch)

    strategies = tuple(words.tag_of)
    config = LocalTeacherConfig(
        asked.model, strategies, rows_per_strategy=-(-asked.rows // len(strategies)), seed=asked.seed
    )
    told = Told(config.rows_per_strategy * len(strategies))
    for record in write_with_local_model(config, words, asked.out):
        lost = "; ".join(f"{count} x {why}" for why, count in record.rejected.items())
        say(
            f"batch {record.batch}: {record.accepted} of {sum(record.strategies.values())} rows, {record.rows} in all"
            + (f" ({lost})" if lost else "")
        )
        told(record)
