"""What the tests for theater ask of a model: thoughts, answers after a thought or after none, and their probabilities.

A thought is the tuple of token ids between its begin and its end, so that it can be taken away, shuffled, swapped and
replaced before the answer is asked for. Anything that can do what `Thinker` lists can be tested: a Hugging Face model
(`text_thinker`), a model with a mixing head, a rule written by hand.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from forgelib.data import STRATEGIES, Example, ReasoningRow

Ids = tuple[int, ...]


class Thinker(Protocol):
    """A model as the tests see it. Lists have one entry per prompt; a thought None means the path without a thought,
    () the path with an empty one.

    max_thought_tokens: limit of a thought, its end token counted; a sampled thought of so many tokens was cut off.
    """

    max_thought_tokens: int

    def think(self, prompts: Sequence[str], *, n: int, seed: int, temperature: float = 1.0) -> list[list[Ids]]:
        """`n` thoughts for each prompt, drawn by `seed` alone; temperature 0: the greedy one, `n` times."""

    def answer(self, prompts: Sequence[str], thoughts: Sequence[Ids | None]) -> list[str]:
        """The greedy answer after each prompt and thought."""

    def log_probs(
        self, prompts: Sequence[str], thoughts: Sequence[Ids | None], candidates: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """log P in nats of each candidate, with its end of text, after prompt and thought: [candidates] each."""

    def continuation(self, prompts: Sequence[str]) -> list[Ids]:
        """What is written greedily, without a thought, in at most max_thought_tokens tokens."""

    def filler(self, length: int) -> Ids:
        """A thought of `length` tokens that says nothing."""

    def text(self, thought: Ids) -> str:
        """The thought as text, its outer tokens included where it was begun and ended."""


def check_rows(rows: Sequence[ReasoningRow], wanted: int, same: Callable[[str, str], bool]) -> None:
    """Raises ValueError, before any work, for fewer rows than asked, and for a row without a prompt, without an answer,
    or with one that `same(answer, reference)` does not even find equal to itself (text where a number is asked for)."""
    if not rows:
        raise ValueError("there are no rows: nothing can be asked")
    if len(rows) < wanted:
        raise ValueError(f"{wanted} problems are asked for and there are {len(rows)} rows: give more, or ask for fewer")
    for name in ("prompt", "answer"):
        if empty := [i for i, row in enumerate(rows) if not getattr(row, name).strip()]:
            raise ValueError(f"row {empty[0]} has no {name} ({len(empty)} such rows): right and wrong cannot be told")
    for i, row in enumerate(rows):
        if not same(row.answer, row.answer):
            raise ValueError(f"row {i}: the comparison of answers does not take its answer {row.answer[:40]!r}")


def questions(examples: Sequence[Example]) -> list[ReasoningRow]:
    """Dataset examples as rows to be asked: no trace yet, strategy chain_of_thought, the dataset as their topic."""
    return [
        ReasoningRow(e.prompt, "", e.answer, STRATEGIES[0], 1, e.dataset, f"{e.dataset} ({e.source})", False)
        for e in examples
    ]
