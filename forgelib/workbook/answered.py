"""Problems that a model was asked once: what it thought, what it answered, and whether that was right."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from forgelib.data import ReasoningRow
from forgelib.evaluate.accuracy import same_text
from forgelib.evaluate.thinker import Ids, Thinker


@dataclass(frozen=True)
class Answered:
    """n rows with what was thought before each answer (None: nothing), the answers, and which are right, bool [n]."""

    rows: Sequence[ReasoningRow]
    thoughts: list[Ids | None]
    answers: list[str]
    right: np.ndarray


def answered(
    thinker: Thinker,
    rows: Sequence[ReasoningRow],
    *,
    thoughts: bool = True,
    same: Callable[[str, str], bool] = same_text,
) -> Answered:
    """Each row asked once, after a greedy thought or without one. `same(answer, true answer)`: whether it is right."""
    prompts = [row.prompt for row in rows]
    own: list[Ids | None] = [None] * len(rows)
    if thoughts:
        own = [some[0] for some in thinker.think(prompts, n=1, seed=0, temperature=0.0)]
    answers = thinker.answer(prompts, own)
    right = [same(answer, row.answer) for answer, row in zip(answers, rows, strict=True)]
    return Answered(rows, own, answers, np.array(right, dtype=bool))
