"""Reasoning rows: one schema for every maker (procedural, OpenRouter, a local model), and their files.

A row is a prompt, a reasoning trace written in a thinking vocabulary, and an answer. `verified` says that a machine
checked the answer (and, for procedural rows, every line of the trace); what a language model wrote is not.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from forgelib.data import STRATEGIES, DataError, Example, RowError, Vocabulary, check_fields

#: Of ten prompts, by their hash, one is for validation: METHOD's 90/10, the same for every seed, maker and machine.
VALIDATION_SHARE = 10
#: How a prompt ends, and how it ends where no thought is wanted.
ASKS, ASKS_AT_ONCE = "Answer:", "Answer at once:"


@dataclass(frozen=True)
class ReasoningRow:
    """prompt: ends with "Answer:"; reasoning: the thought with its outer tokens; answer: what follows it. strategy: one
    of STRATEGIES; difficulty: 1 (easiest) to 3; topic: what it is about; source: who made it."""

    prompt: str
    reasoning: str
    answer: str
    strategy: str
    difficulty: int
    topic: str
    source: str
    verified: bool

    @property
    def text(self) -> str:
        return f"{self.prompt} {self.reasoning} {self.answer}"

    @property
    def direct_prompt(self) -> str:
        """The prompt that asks for the answer without a thought."""
        return without_thought(self.prompt)

    @property
    def part(self) -> str:
        """The part "validation" for a tenth of all prompts, else "train"."""
        digest = hashlib.sha256(self.prompt.encode()).digest()
        return "validation" if int.from_bytes(digest[:4], "big") % VALIDATION_SHARE == 0 else "train"


def without_thought(prompt: str) -> str:
    """The same question, asking for the answer at once: "... Answer at once:". A model that is shown both answers under
    one prompt cannot know which is wanted, and leaves its thought out where it feels like it."""
    return f"{prompt.removesuffix(ASKS)}{ASKS_AT_ONCE}"


_FIELDS = {field.name: field.type for field in fields(ReasoningRow)}


def to_row(fact: dict, words: Vocabulary) -> ReasoningRow:
    """A dict as a ReasoningRow. Raises RowError naming the field: missing, of another type, an unknown strategy, or a
    reasoning that is not one well-formed thought of the vocabulary."""
    check_fields(fact, _FIELDS)
    if unknown := sorted(set(fact) - set(_FIELDS)):
        raise RowError(unknown[0], f"is no field of a reasoning row; these are {', '.join(_FIELDS)}")
    row = ReasoningRow(**fact)
    if row.strategy not in STRATEGIES:
        raise RowError("strategy", f"must be one of {', '.join(STRATEGIES)}, not '{row.strategy}'")
    if row.strategy not in words.tag_of:
        raise RowError("strategy", f"'{row.strategy}' has no place in vocabulary {words.name}")
    if not 1 <= row.difficulty <= 3:
        raise RowError("difficulty", f"must be 1 to 3, not {row.difficulty}")
    for name in ("prompt", "answer"):
        if not getattr(row, name).strip():
            raise RowError(name, "is empty")
    thought = words.read(row.reasoning)
    if thought.inside is None or thought.problems or thought.answer:
        told = thought.problems or (f"must begin with {words.begin} and end with {words.end}",)
        raise RowError("reasoning", f"is not one thought: {'; '.join(told)}")
    if not thought.inside.strip():
        raise RowError("reasoning", "holds an empty thought")
    return row


def worked_rows(examples: Iterable[Example], words: Vocabulary) -> list[ReasoningRow]:
    """Rows of a dataset that comes with worked solutions (GSM8K): each of their lines is a step. Nobody checked them.

    Examples without a solution or an answer are left out. difficulty: 1 up to two steps, 2 up to four, else 3.
    """
    rows = []
    for example in examples:
        lines = [line.strip() for line in example.reasoning.splitlines() if line.strip()]
        if lines and example.answer:
            rows.append(
                ReasoningRow(
                    prompt=example.prompt,
                    reasoning=words.write([(words.step, line) for line in lines]),
                    answer=example.answer,
                    strategy="chain_of_thought",
                    difficulty=1 + (len(lines) > 2) + (len(lines) > 4),
                    topic=example.category,
                    source=f"{example.dataset} ({example.source})",
                    verified=False,
                )
            )
    return rows


def write_rows(path: Path, rows: Iterable[ReasoningRow]) -> None:
    """One JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: Path, words: Vocabulary) -> tuple[list[ReasoningRow], list[str]]:
    """The rows of a file, and a sentence for each line that was skipped, naming file, line and field.

    Raises DataError where the file is missing, empty, or holds no usable row.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it with 30_quietstar_bake") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text (byte {error.start}); a reasoning file is JSON lines") from error
    rows, skipped = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(to_row(json.loads(line), words))
        except json.JSONDecodeError as error:
            skipped.append(f"{path.name}, line {number}: is no JSON ({error.msg} at column {error.colno})")
        except RowError as error:
            skipped.append(f"{path.name}, line {number}: {error}")
    if not rows:
        told = f"none of its {len(skipped)} rows can be used, the first: {skipped[0]}" if skipped else "is empty"
        raise DataError(f"{path}: {told}")
    return rows, skipped
