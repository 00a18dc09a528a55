"""The room's shared words: an example, a dataset's description, and the errors for rows that cannot be used."""

from collections.abc import Callable
from dataclasses import dataclass

CATEGORIES = ("math", "code", "qa", "commonsense", "language")


class DataError(ValueError):
    """Rows that cannot be used: the message names the place, the cause and the remedy."""


class NoSuchPart(DataError):
    """The dataset is there and has no such part: no test split with answers, say."""


class RowError(DataError):
    """One field of one row is unusable; the reader of the file adds the file's name and the line."""

    def __init__(self, field: str, problem: str):
        self.field, self.problem = field, problem
        super().__init__(f"field '{field}' {problem}")


@dataclass(frozen=True)
class Example:
    """One training or test item: a prompt that ends with "Answer:", and its answer. A plain language row has an empty
    answer. `source` is where the row came from: "mirror", "hub" or "procedural". `reasoning` holds a worked solution
    where the dataset has one; it is no part of the text.
    """

    prompt: str
    answer: str
    category: str
    dataset: str
    source: str
    reasoning: str = ""

    @property
    def continuation(self) -> str:
        """The answer as it follows the prompt: with the blank that a tokenizer takes as part of the next word."""
        return f" {self.answer}" if self.answer else ""

    @property
    def text(self) -> str:
        return self.prompt + self.continuation


#: `fields`: path -> type; a list type means a list of that type.
FieldTypes = dict[str, type | tuple[type, ...] | list[type]]
Row = dict


@dataclass(frozen=True)
class DatasetSpec:
    """Where a dataset lives and how its rows become examples.

    splits: those of the hub that carry answers. convert: row -> (prompt, answer, reasoning). folders: names under which
    a local mirror may keep it, first match wins. streamed: too large to download whole, the hub's rows are streamed.
    optional: with source "real" it may be absent (no rows) instead of stopping the run.
    starts_document: where a row is one line, a pattern of the line that opens a document; its lines are joined.
    """

    name: str
    category: str
    hf_id: str
    config: str | None
    splits: tuple[str, ...]
    licence: str
    fields: FieldTypes
    convert: Callable[[Row], tuple[str, str, str]]
    folders: tuple[str, ...]
    streamed: bool = False
    optional: bool = False
    starts_document: str = ""

    def to_example(self, row: Row, source: str) -> Example:
        """The row as an Example. Raises RowError naming the field."""
        check_fields(row, self.fields)
        prompt, answer, reasoning = self.convert(row)
        return Example(prompt, answer, self.category, self.name, source, reasoning)


def check_fields(row: Row, fields: FieldTypes) -> None:
    """Every field is there and of its type, else RowError."""
    if not isinstance(row, dict):
        raise RowError("(row)", f"must be an object with named fields, not {type(row).__name__}")
    for path, wanted in fields.items():
        value = row
        for part in path.split("."):
            if not isinstance(value, dict) or part not in value:
                raise RowError(path, f"is missing; the row has {sorted(row)}")
            value = value[part]
        item = wanted[0] if isinstance(wanted, list) else wanted
        values = value if isinstance(wanted, list) else [value]
        if not isinstance(values, list):
            raise RowError(path, f"must be a list of {_type_name(item)}, not {type(value).__name__}")
        for one in values:
            if not isinstance(one, item) or (isinstance(one, bool) and item is int):
                raise RowError(path, f"must hold {_type_name(item)}, not {type(one).__name__} ({str(one)[:40]!r})")


def _type_name(wanted: type | tuple[type, ...]) -> str:
    return " or ".join(one.__name__ for one in (wanted if isinstance(wanted, tuple) else (wanted,)))
