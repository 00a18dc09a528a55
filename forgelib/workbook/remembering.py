"""A thinker that asks each question once: a test that is broken off goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from forgelib.evaluate.thinker import Ids, Thinker


class Remembering:
    """A Thinker that asks each question once, and keeps question and answer in `file`: a test that is broken off goes
    on where it was, and a second baseline costs no second thoughts. The file belongs to one model."""

    def __init__(self, thinker: Thinker, file: Path):
        self._thinker, self._file = thinker, file
        self.max_thought_tokens = thinker.max_thought_tokens
        self._known: dict[str, list] = {}
        self.thoughts: dict[str, dict[Ids, None]] = {}
        self.answers: dict[tuple[str, Ids | None], str] = {}
        if file.is_file():
            self._known = dict(_whole_lines(file))
            temporary = file.with_suffix(".new")
            temporary.write_text("".join(_line(*entry) for entry in self._known.items()), encoding="utf-8")
            temporary.replace(file)

    def think(self, prompts: Sequence[str], *, n: int, seed: int, temperature: float = 1.0) -> list[list[Ids]]:
        """As the thinker thinks; `thoughts` keeps the thoughts of each prompt, in their order."""
        asked = ["think", list(prompts), n, seed, temperature]
        found = self._once(asked, lambda: self._thinker.think(prompts, n=n, seed=seed, temperature=temperature))
        thoughts = [[tuple(one) for one in some] for some in found]
        for prompt, some in zip(prompts, thoughts, strict=True):
            self.thoughts.setdefault(prompt, {}).update(dict.fromkeys(some))
        return thoughts

    def answer(self, prompts: Sequence[str], thoughts: Sequence[Ids | None]) -> list[str]:
        """As the thinker answers; `answers` keeps them by prompt and thought."""
        asked = ["answer", list(prompts), [thought if thought is None else list(thought) for thought in thoughts]]
        found = self._once(asked, lambda: self._thinker.answer(prompts, thoughts))
        self.answers |= dict(zip(zip(prompts, thoughts, strict=True), found, strict=True))
        return found

    def text(self, thought: Ids) -> str:
        """The thought as text."""
        return self._thinker.text(thought)

    def _once(self, asked: list, ask: Callable[[], list]) -> list:
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        if key not in self._known:
            self._known[key] = ask()
            with self._file.open("a", encoding="utf-8") as file:
                file.write(_line(key, self._known[key]))
        return self._known[key]


def _line(key: str, found: list) -> str:
    return json.dumps([key, found]) + "\n"


def _whole_lines(file: Path) -> Iterator[tuple[str, list]]:
    """The entries of a file; a last one that a kill has torn does not count."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            key, found = json.loads(line)
        except ValueError:
            continue
        yield key, found
