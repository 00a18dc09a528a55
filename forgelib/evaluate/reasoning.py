"""How a model reasons: it thinks and answers by itself, greedily, and what it wrote is taken apart.

An answer counts when it is the reference's, letter by letter. The strategies self_doubt and self_correction are scored
by repair: the thought is begun with a planted slip, and what counts is that the model mends it and ends at the right
answer. A model that has merely learned how such texts look is right without a slip and wrong with one.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from forgelib.data import ReasoningRow, Thought, Vocabulary
from forgelib.evaluate.accuracy import greedy_texts

REPAIRED = ("self_doubt", "self_correction")
#: Share of the rows whose true trace holds a tag in which the model should use it, too (METHOD). `thinking`: all rows.
USAGE_TARGETS = {"thinking": 0.8, "step": 0.7, "mece": 0.6, "falsify": 0.6, "doubt": 0.5}
_USAGE_STRATEGY = {"mece": "mece", "falsify": "falsification", "doubt": "self_doubt"}
_SUM = re.compile(r"(\d+) ?([-+]) ?(\d+) ?= ?(\d+)")


@dataclass(frozen=True)
class Reasoned:
    """What a model made of rows: how its text was begun for it ("" or a planted slip), texts after the prompt with that
    beginning, each taken apart, and whether its answer is right [n]."""

    rows: list[ReasoningRow]
    begun: list[str]
    texts: list[str]
    thoughts: list[Thought]
    correct: np.ndarray

    def by_strategy(self) -> dict[str, np.ndarray]:
        """strategy -> correct, bool [rows of the strategy]."""
        names = np.array([row.strategy for row in self.rows])
        return {name: self.correct[names == name] for name in dict.fromkeys(names.tolist())}


def reason(
    model: torch.nn.Module,
    tokenizer,
    words: Vocabulary,
    rows: Sequence[ReasoningRow],
    *,
    max_new_tokens: int = 96,
    batch_size: int = 64,
) -> Reasoned:
    """Let the model think and answer. Rows of REPAIRED begin with a planted slip where their trace has a sum to spoil.

    A planted text is part of `texts`. Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("there are no reasoning rows to answer")
    begun = [planted(row) if row.strategy in REPAIRED else "" for row in rows]
    prompts = [f"{row.prompt} {start}" if start else row.prompt for row, start in zip(rows, begun, strict=True)]
    written = greedy_texts(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    texts = [start + text for start, text in zip(begun, written, strict=True)]
    thoughts = [words.read(text) for text in texts]
    correct = np.array([t.answer == row.answer for t, row in zip(thoughts, rows, strict=True)])
    return Reasoned(list(rows), begun, texts, thoughts, correct)


def planted(row: ReasoningRow) -> str:
    """The beginning of a thought with a slip: the true trace up to its first sum, which is off by one. "" without."""
    found = _SUM.search(row.reasoning)
    if found is None:
        return ""
    a, sign, b, _ = found.groups()
    true = int(a) + int(b) if sign == "+" else int(a) - int(b)
    return row.reasoning[: found.start(4)] + str(true + 1)


def token_usage(found: Reasoned, words: Vocabulary) -> dict[str, float]:
    """For each name of USAGE_TARGETS that the vocabulary has: in what share of the rows whose true trace holds the tag
    the model's thought does so, too; rows where the tag was written for it do not count. A name without rows is left
    out."""
    tags = {"thinking": words.begin, "step": words.step} | {
        name: words.tag_of.get(strategy, "") for name, strategy in _USAGE_STRATEGY.items()
    }
    shares = {}
    for name, tag in tags.items():
        used = [
            thought.counts[tag] > 0
            for row, start, thought in zip(found.rows, found.begun, found.thoughts, strict=True)
            if tag and tag in row.reasoning and tag not in start
        ]
        if used:
            shares[name] = float(np.mean(used))
    return shares
