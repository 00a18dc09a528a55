"""A row asked once: the answer after its own thought, and that it is held to its own true answer."""

from dataclasses import replace

import numpy as np

from forgelib.data import vocabulary
from forgelib.data.traces import procedural_rows
from forgelib.workbook.answered import answered

ROWS = procedural_rows(6, vocabulary("forge-12"), seed=0, strategies=("chain_of_thought",))


class Numbering:
    """Thinks the place of its prompt, and answers what it thought; without a thought it answers '?'."""

    def __init__(self):
        self.asked = []

    def think(self, prompts, *, n, seed, temperature=1.0):
        self.asked.append((n, temperature))
        return [[(place,)] * n for place, _ in enumerate(prompts)]

    def answer(self, prompts, thoughts):
        return ["?" if thought is None else str(thought[0]) for thought in thoughts]


def test_each_row_is_answered_after_its_own_greedy_thought():
    thinker, rows = Numbering(), [replace(row, answer=str(i % 3)) for i, row in enumerate(ROWS)]
    found = answered(thinker, rows)
    assert thinker.asked == [(1, 0.0)] and found.thoughts == [(i,) for i in range(6)]
    assert found.answers == list("012345") and found.right.tolist() == [True] * 3 + [False] * 3


def test_without_thoughts_none_is_asked_for():
    thinker = Numbering()
    found = answered(thinker, [replace(row, answer="?") for row in ROWS], thoughts=False)
    assert not thinker.asked and found.thoughts == [None] * 6 and found.right.all() and found.right.dtype == np.bool_


def test_the_comparison_is_the_callers():
    found = answered(Numbering(), ROWS, same=lambda answer, true: int(answer) < 2)
    assert found.right.sum() == 2
