"""Thinking vocabularies: the tokens that open and close a thought, and the tags of the strategies inside it.

    prompt [thinking]<step>3+4=7<step>7-2=5[/endthinking] 5

Here is what such a text says: writing one, taking one apart, counting tags, naming what is malformed. Adding the tokens
to a tokenizer and a model is `forgelib.thoughts.vocabulary`.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

STRATEGIES = (
    "chain_of_thought",
    "mece",
    "falsification",
    "expert_perspective",
    "orthogonal_wisdom",
    "self_doubt",
    "bayesian",
    "multidomain",
    "self_correction",
    "uncertainty",
)
_FORGE_12 = ("<step>", "<mece>", "<falsify>", "<expert>", "<orthogonal>", "<doubt>", "<bayesian>", "<multidomain>")
_FORGE_8_TAGS = ("<step>", "<mece>", "<falsify>", "<expert>", "<reason>", "<doubt>", "<reason>")


@dataclass(frozen=True)
class Vocabulary:
    """`begin` and `end` enclose a thought; `tag_of` names the tag that opens a step of a strategy.

    A strategy without a tag of its own has "" (startofthought); one that the preset leaves out is not in `tag_of`.
    """

    name: str
    begin: str
    end: str
    tag_of: Mapping[str, str]
    step: str

    @property
    def tags(self) -> tuple[str, ...]:
        """Inner tags, each once, `step` first."""
        return tuple(dict.fromkeys(tag for tag in (self.step, *self.tag_of.values()) if tag))

    @property
    def tokens(self) -> tuple[str, ...]:
        """Everything that is added to a tokenizer."""
        return (self.begin, self.end, *self.tags)

    def write(self, steps: Sequence[tuple[str, str]], gap: str = " ") -> str:
        """A thought from (tag, text) steps: [thinking]<step> text<doubt> text[/endthinking]; `gap` follows a tag."""
        if not self.tags:
            return f"{self.begin} {'. '.join(text for _, text in steps)}{self.end}"
        return self.begin + "".join(f"{tag}{gap}{text}" for tag, text in steps) + self.end

    def read(self, text: str) -> "Thought":
        """Take a generated text apart; what is malformed is reported, never raised."""
        problems = self._problems(text)
        inside, closed, after = text.partition(self.begin)[2].partition(self.end)
        opened = self.begin in text
        pattern = "|".join(re.escape(token) for token in self.tokens)
        answer = re.sub(pattern, "", after if closed else "" if opened else text).strip()
        return Thought(
            inside if opened else None, answer, Counter(re.findall(pattern, text)), tuple(self._steps(inside)), problems
        )

    def _steps(self, inside: str) -> list[tuple[str, str]]:
        if not self.tags:
            return [("", inside.strip())] if inside.strip() else []
        parts = re.split("(" + "|".join(re.escape(tag) for tag in self.tags) + ")", inside)
        return [(tag, text.strip()) for tag, text in zip(parts[1::2], parts[2::2], strict=True)]

    def _problems(self, text: str) -> tuple[str, ...]:
        found, depth = [], 0
        for token in re.findall("|".join(re.escape(token) for token in self.tokens), text):
            if token == self.begin:
                found += [f"{self.begin} inside a thought"] * (depth > 0)
                depth += 1
            elif token == self.end:
                found += [f"{self.end} without {self.begin}"] * (depth == 0)
                depth = max(0, depth - 1)
            elif depth == 0:
                found.append(f"{token} outside a thought")
        if depth:
            found.append(f"{self.begin} is never closed")
        inside = text.partition(self.begin)[2].partition(self.end)[0]
        found += [f"{tag} without a text" for tag, step in self._steps(inside) if tag and not step]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True)
class Thought:
    """A text taken apart.

    inside: what stands between begin and end, None without a begin; answer: what follows the end (the whole text where
    nothing was opened); counts: how often each token occurs; steps: (tag, text); problems: what is malformed, in words.
    """

    inside: str | None
    answer: str
    counts: Counter
    steps: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


VOCABULARIES = {
    "forge-12": Vocabulary(
        "forge-12",
        "[thinking]",
        "[/endthinking]",
        dict(zip(STRATEGIES, (*_FORGE_12, "<correct>", "<uncertain>"), strict=True)),
        "<step>",
    ),
    "forge-8": Vocabulary(
        "forge-8", "<think>", "</think>", dict(zip(STRATEGIES[:7], _FORGE_8_TAGS, strict=True)), "<step>"
    ),
    "startofthought": Vocabulary(
        "startofthought", "<|startofthought|>", "<|endofthought|>", dict.fromkeys(STRATEGIES, ""), ""
    ),
}


def vocabulary(name: str) -> Vocabulary:
    """A preset by its name. Raises ValueError listing the names there are."""
    if name not in VOCABULARIES:
        raise ValueError(f"thinking vocabulary '{name}' is unknown; there are {', '.join(VOCABULARIES)}")
    return VOCABULARIES[name]
