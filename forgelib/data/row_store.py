"""Rows that a language model wrote: what makes one acceptable, and the folder in which they are kept.

    rows.jsonl      the accepted rows, one JSON object a line
    journal.jsonl   what was done, one event a line; whoever continues a folder reads it first

Both are appended to and on disk when the call returns. A line torn by a kill is cut off when the folder is opened.
"""

import fcntl
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from forgelib.data import STRATEGIES, DataError, ReasoningRow, RowError, Vocabulary, to_row

ROWS, JOURNAL = "rows.jsonl", "journal.jsonl"
_TAG_LIKE = re.compile(r"</?[A-Za-z][A-Za-z_]*>|<\|\w+\|>|\[/?\w*think\w*\]")


def check_strategies(strategies: Iterable[str], words: Vocabulary) -> None:
    """Raises DataError naming a strategy that there is not, or that the vocabulary has no place for."""
    for strategy in strategies:
        if strategy not in STRATEGIES:
            raise DataError(f"strategy '{strategy}' is unknown; there are {', '.join(STRATEGIES)}")
        if strategy not in words.tag_of:
            raise DataError(
                f"strategy '{strategy}' has no place in vocabulary {words.name}; it has {', '.join(words.tag_of)}"
            )


def written_row(fact: Mapping, strategy: str, source: str, words: Vocabulary) -> ReasoningRow:
    """A model's object (prompt, steps or reasoning, answer, difficulty, topic) as a row of the strategy, unverified.

    `steps` are [tag, text] or {"tag", "text"}, plain texts where the vocabulary has no tags; `reasoning` is the whole
    thought. Raises RowError, its text without the row's own values, so that equal faults are counted together.
    """
    if fact.get("strategy", strategy) != strategy:
        raise RowError("strategy", "is another than was asked for")
    answer = fact.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    row = {name: fact[name] for name in ("prompt", "difficulty", "topic") if name in fact}
    for name, value in (*row.items(), ("answer", answer)):
        if isinstance(value, str) and _TAG_LIKE.search(value):
            raise RowError(name, "holds a tag")
        _check_characters(name, value)
    if answer is not None:
        row["answer"] = answer.strip() if isinstance(answer, str) else answer
    if isinstance(row.get("prompt"), str):
        row["prompt"] = _with_frame(row["prompt"])
    row["reasoning"] = _reasoning(fact, words)
    _check_characters("reasoning", row["reasoning"])
    row |= {"strategy": strategy, "source": source, "verified": False}
    try:
        made = to_row(row, words)
    except RowError as error:
        raise RowError(error.field, re.split(r"; |, not ", error.problem)[0]) from None
    own = words.tag_of[strategy]
    if own and own not in words.read(made.reasoning).counts:
        raise RowError("reasoning", f"does not use the strategy's own tag {own}")
    return made


def _check_characters(name: str, value: object) -> None:
    if isinstance(value, str) and any("\ud800" <= one <= "\udfff" for one in value):
        raise RowError(name, "holds half a character (a lone surrogate)")


def _with_frame(prompt: str) -> str:
    body = prompt.strip().removesuffix("Answer:").strip().removeprefix("Question:").strip()
    return f"Question: {body}\nAnswer:" if body else ""


def _reasoning(fact: Mapping, words: Vocabulary) -> str:
    if "steps" not in fact:
        if not isinstance(fact.get("reasoning"), str):
            raise RowError("steps", "is missing, and there is no text 'reasoning'")
        text = fact["reasoning"].strip()
        if strange := [tag for tag in _TAG_LIKE.findall(text) if tag not in words.tokens]:
            raise RowError("reasoning", f"has a tag that vocabulary {words.name} does not have: {strange[0][:24]}")
        return text
    if not isinstance(fact["steps"], list) or not fact["steps"]:
        raise RowError("steps", "must be a list that is not empty")
    return words.write([_step(step, words) for step in fact["steps"]])


def _step(step: object, words: Vocabulary) -> tuple[str, str]:
    if isinstance(step, dict):
        step = [step.get("tag"), step.get("text")]
    if isinstance(step, str) and not words.tags:
        step = ["", step]
    if not (isinstance(step, list) and len(step) == 2 and all(isinstance(part, str) for part in step)):
        raise RowError("steps", "must hold [tag, text] pairs")
    tag, text = step[0].strip(), step[1].strip()
    if tag not in (words.tags or ("",)):
        raise RowError("steps", f"has a tag that vocabulary {words.name} does not have: {tag[:24]}")
    if _TAG_LIKE.search(text):
        raise RowError("steps", "has a tag inside a text")
    if not text:
        raise RowError("steps", "has a step without a text")
    return tag, text


class RowStore:
    """The folder of one maker ("openrouter", "local"). Nobody else may write there until `close`.

    `rows` are the accepted ones; `events` is the journal. Raises DataError where another process holds the folder, its
    rows come from elsewhere, or a line is unusable, naming it.
    """

    def __init__(self, folder: Path, words: Vocabulary, maker: str):
        self.folder, self.words = Path(folder), words
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / ".lock").open("w")
        except OSError as error:
            raise DataError(f"{self.folder}: rows cannot be kept there ({error.strerror})") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise DataError(f"{self.folder}: another process is writing rows there; wait for it or stop it") from None
        try:
            self.events = [event for _, event in _whole_lines(self.folder / JOURNAL)]
            self.rows = [self._stored(number, fact) for number, fact in _whole_lines(self.folder / ROWS)]
            self._claim(maker)
        except BaseException:
            self.close()
            raise
        self._index()

    def close(self) -> None:
        """Let another process write here."""
        self._lock.close()

    def holds(self, prompt: str) -> bool:
        """Whether a row has this prompt; case and blanks do not make another one."""
        return _same(_with_frame(prompt)) in self._prompts

    def count(self, source: str, strategy: str) -> int:
        return self._counts[source, strategy]

    def add(
        self, facts: Iterable[Mapping], strategy: str, source: str, most: int | None = None
    ) -> tuple[int, Counter[str]]:
        """Check a model's objects and keep the good ones, at most `most`. (rows kept, reasons of the others)."""
        kept, refused = [], Counter()
        for fact in facts:
            try:
                row = written_row(fact, strategy, source, self.words)
            except RowError as error:
                refused[str(error)] += 1
                continue
            if _same(row.prompt) in self._prompts:
                refused["a row with this prompt is there"] += 1
            elif most is not None and len(kept) >= most:
                refused["more rows than were asked for"] += 1
            else:
                kept.append(row)
                self._prompts.add(_same(row.prompt))
        _append(self.folder / ROWS, [asdict(row) for row in kept])
        self.rows += kept
        self._counts[source, strategy] += len(kept)
        return len(kept), refused

    def note(self, **event: object) -> None:
        """Add an event to the journal."""
        _append(self.folder / JOURNAL, [event])
        self.events.append(event)

    def drop_rows_after(self, count: int) -> None:
        """Forget all rows but the first `count`: their maker was killed before it noted them and writes them again."""
        if count >= len(self.rows):
            return
        lines = (self.folder / ROWS).read_bytes().split(b"\n")
        _cut(self.folder / ROWS, sum(len(line) + 1 for line in lines[:count]))
        del self.rows[count:]
        self._index()

    def _index(self) -> None:
        self._prompts = {_same(row.prompt) for row in self.rows}
        self._counts = Counter((row.source, row.strategy) for row in self.rows)

    def _claim(self, maker: str) -> None:
        """Another maker's journal would be misread, and what it spent forgotten."""
        if not self.events and self.rows:
            raise DataError(f"{self.folder}: holds {ROWS} but no {JOURNAL}; choose a folder of its own for these rows")
        if not self.events:
            self.note(event="maker", maker=maker)
        if self.events[0].get("maker") != maker:
            raise DataError(f"{self.folder}: is the folder of another maker; choose one of its own")

    def _stored(self, number: int, fact: dict) -> ReasoningRow:
        try:
            return to_row(fact, self.words)
        except RowError as error:
            raise DataError(
                f"{self.folder / ROWS}, line {number}: {error}. Take the line out, or write to another folder."
            ) from error


def statistics(folder: Path) -> list[dict]:
    """What the journal of a folder says for each maker and strategy, totals over all sessions: requests, asked,
    accepted, rejected and faults (reason -> count), tokens_in, tokens_out, dollars. A local teacher's request is its
    part of a batch."""
    table: dict[tuple[str, str], dict] = {}
    for _, event in _whole_lines(Path(folder) / JOURNAL, mend=False):
        one = {event["strategy"]: event} if event["event"] == "finished" else {}
        for strategy, facts in (event["strategies"] if event["event"] == "batch" else one).items():
            row = table.setdefault((event["source"], strategy), defaultdict(int, rejected=Counter(), faults=Counter()))
            row["requests"] += 1
            for name in ("asked", "accepted", "tokens_in", "tokens_out", "dollars"):
                row[name] += facts.get(name, 0)
            for name in ("rejected", "faults"):
                row[name].update(facts.get(name, {}))
    return [{"source": source, "strategy": strategy, **row} for (source, strategy), row in table.items()]


def _same(prompt: str) -> str:
    return " ".join(prompt.split()).casefold()


def _append(path: Path, facts: list[dict]) -> None:
    if not facts:
        return
    with path.open("ab") as file:
        file.write("".join(json.dumps(fact, ensure_ascii=False) + "\n" for fact in facts).encode())
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(path: Path, mend: bool = True) -> list[tuple[int, dict]]:
    """(line number, object) of every line. With `mend` a torn last line is cut off the file."""
    content = path.read_bytes() if path.is_file() else b""
    whole = content.rfind(b"\n") + 1
    if mend and whole < len(content):
        _cut(path, whole)
    found = []
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], start=1):
        try:
            found.append((number, json.loads(line)))
        except ValueError as error:
            raise DataError(f"{path}, line {number}: is no JSON. Take it out, or write to another folder.") from error
    return found


def _cut(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(length)
        os.fsync(file.fileno())
