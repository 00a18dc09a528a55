"""Reasoning rows written by any causal language model in a local Hugging Face folder.

The model continues a text of worked examples; a chat frame is not used, so that a base model can be a teacher, too.
Rows and journal are kept as for OpenRouter. The journal's unit is a batch: its seed is its number's, and its questions
follow from what is kept, so a teacher that was killed goes on as if it had not been.
"""

import contextlib
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forgelib.data import (
    STRATEGIES,
    STRATEGY_TEXTS,
    DataError,
    RowStore,
    Vocabulary,
    check_strategies,
    example_steps,
)


@dataclass(frozen=True)
class Question:
    """A problem to which the model writes reasoning and answer. difficulty: 1 to 3."""

    text: str
    topic: str
    difficulty: int = 1


@dataclass(frozen=True)
class LocalTeacherConfig:
    """model: a folder with safetensors weights and a tokenizer. shots: worked examples before the question, 1 or more.
    give_up_after: so many texts in a row without a valid row, and the teacher is given up. device: torch's name."""

    model: Path
    strategies: tuple[str, ...] = STRATEGIES
    rows_per_strategy: int = 100
    batch_size: int = 8
    shots: int = 3
    max_new_tokens: int = 256
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    give_up_after: int = 200
    device: str = "cpu"

    def __post_init__(self):
        for name in ("rows_per_strategy", "batch_size", "shots", "max_new_tokens", "give_up_after"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DataError(f"{name} is {value!r}; it must be a whole number above 0")
        if not self.strategies or len(set(self.strategies)) < len(self.strategies):
            raise DataError("strategies must name at least one, and none twice")
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise DataError(
                f"temperature is {self.temperature:g} and top_p {self.top_p:g}; both must be above 0, top_p at most 1"
            )

    @property
    def source(self) -> str:
        return f"local:{Path(self.model).resolve().name}"


@dataclass(frozen=True)
class LocalTeacherRecord:
    """One batch. strategies: strategy -> texts written; accepted: rows; rejected: reason -> count; tokens_out: written.
    rows: all in the folder; missing: rows still to be written."""

    batch: int
    strategies: dict[str, int]
    accepted: int
    rejected: dict[str, int]
    tokens_out: int
    rows: int
    missing: int


def write_with_local_model(
    config: LocalTeacherConfig,
    words: Vocabulary,
    folder: Path,
    *,
    questions: Sequence[Question] = (),
    loaded: tuple[Any, Any] | None = None,
) -> Iterator[LocalTeacherRecord]:
    """Write until every strategy has its rows; they lie in `folder/rows.jsonl`, unverified.

    Without `questions` the model writes the problems, too. loaded: (model, tokenizer), where they are in memory.
    Raises DataError for a strategy that the vocabulary does not have, a folder without a model, a context too short
    for the examples, questions that are used up, or a teacher that writes nothing valid, naming the commonest fault.
    """
    check_strategies(config.strategies, words)
    if loaded is None and not Path(config.model).is_dir():
        raise DataError(f"{config.model}: is no folder; a local teacher is a Hugging Face model folder")
    return _records(config, words, Path(folder), tuple(questions), loaded)


def _records(
    config: LocalTeacherConfig, words: Vocabulary, folder: Path, questions: tuple[Question, ...], loaded: Any
) -> Iterator[LocalTeacherRecord]:
    with contextlib.closing(RowStore(folder, words, "local")) as store:
        batches = [event for event in store.events if event["event"] == "batch"]
        store.drop_rows_after(batches[-1]["rows"] if batches else 0)
        barren = _barren(store.events)
        teacher = None
        for number in itertools.count(len(batches)):
            if not (plan := _plan(config, store, questions, number)):
                return
            teacher = teacher or _Teacher(config, *(loaded or _load(config)))
            texts = [_ask(strategy, question, config.shots, words) for strategy, question in plan]
            written = teacher.write(texts, _seed(config.seed, number))
            parts = _keep(store, config, plan, written)
            accepted = sum(part["accepted"] for part in parts.values())
            rejected = sum((part["rejected"] for part in parts.values()), Counter())
            tokens = sum(part["tokens_out"] for part in parts.values())
            barren = Counter() if accepted else barren + rejected
            shared = {"accepted": accepted, "rejected": dict(rejected), "rows": len(store.rows)}
            store.note(event="batch", batch=number, source=config.source, strategies=parts, **shared)
            strategies, left = (
                {one: part["asked"] for one, part in parts.items()},
                sum(_missing(config, store).values()),
            )
            yield LocalTeacherRecord(number, strategies, tokens_out=tokens, missing=left, **shared)
            if barren.total() >= config.give_up_after:
                store.note(event="gave up")
                _give_up(config, barren, words, written[-1][0])


def _barren(events: list[dict]) -> Counter[str]:
    """Why texts were refused since the last valid row."""
    reasons: Counter[str] = Counter()
    for event in events:
        fruitless = event["event"] == "batch" and not event["accepted"]
        reasons = reasons + Counter(event["rejected"]) if fruitless else Counter()
    return reasons


def _give_up(config: LocalTeacherConfig, barren: Counter[str], words: Vocabulary, last: str) -> None:
    reason, times = barren.most_common(1)[0]
    raise DataError(
        f"{config.source} wrote {barren.total()} texts in a row and none was a valid row of vocabulary {words.name}; "
        f"most often ({times} times): {reason}. The last text began {' '.join(last.split())[:80]!r}. "
        "Take a larger teacher, more shots, a lower temperature or more max_new_tokens."
    )


def _missing(config: LocalTeacherConfig, store: RowStore) -> dict[str, int]:
    left = {one: config.rows_per_strategy - store.count(config.source, one) for one in config.strategies}
    return {strategy: count for strategy, count in left.items() if count > 0}


def _plan(
    config: LocalTeacherConfig, store: RowStore, questions: tuple[Question, ...], number: int
) -> list[tuple[str, Question | None]]:
    """What a batch asks for: (strategy, question), the strategies in turn, no more of each than are missing."""
    missing = _missing(config, store)
    turns = itertools.zip_longest(*([strategy] * count for strategy, count in missing.items()))
    wanted = list(itertools.islice((one for turn in turns for one in turn if one), config.batch_size))
    if not questions or not wanted:
        return [(strategy, None) for strategy in wanted]
    unused = [question for question in questions if not store.holds(question.text)]
    if not unused:
        raise DataError(
            f"all {len(questions)} questions have a row and {sum(missing.values())} rows are still missing; give more "
            "questions or ask for fewer rows"
        )
    first = number * config.batch_size
    return [(one, unused[(first + at) % len(unused)]) for at, one in enumerate(wanted[: len(unused)])]


def _ask(strategy: str, question: Question | None, shots: int, words: Vocabulary) -> str:
    """The text that the model continues: what the strategy does, examples, and the beginning of the next one. The
    strategy's own example comes last."""
    others = [one for one in STRATEGY_TEXTS if one != strategy and one in words.tag_of]
    own = words.tag_of[strategy]
    told = f", with at least one step that begins with {own}" if own else ""
    blocks = [f"Problems with their reasoning and a short answer. The reasoning {STRATEGY_TEXTS[strategy].way}{told}."]
    blocks += [_example(one, words) for one in [*others[: shots - 1], strategy]]
    if question is None:
        return "\n\n".join([*blocks, "Topic:"])
    head = f"Topic: {question.topic}\nDifficulty: {question.difficulty}\nQuestion: {question.text.strip()}\nAnswer:"
    return "\n\n".join([*blocks, head])


def _example(strategy: str, words: Vocabulary) -> str:
    facts = STRATEGY_TEXTS[strategy]
    thought = words.write(example_steps(strategy, words))
    return f"Topic: {facts.topic}\nDifficulty: 1\nQuestion: {facts.question}\nAnswer: {thought} {facts.answer}"


def _keep(
    store: RowStore,
    config: LocalTeacherConfig,
    plan: list[tuple[str, Question | None]],
    written: list[tuple[str, int]],
) -> dict[str, dict]:
    """Check what a batch wrote and keep what is good: strategy -> asked, accepted, rejected, tokens_out."""
    parts: dict[str, dict] = {}
    for (strategy, question), (more, tokens) in zip(plan, written, strict=True):
        part = parts.setdefault(strategy, {"asked": 0, "accepted": 0, "rejected": Counter(), "tokens_out": 0})
        fact, fault = read_block(("Topic:" if question is None else "Answer:") + more, store.words, question)
        kept, reasons = store.add([fact], strategy, config.source) if not fault else (0, Counter([fault]))
        part["asked"], part["accepted"] = part["asked"] + 1, part["accepted"] + kept
        part["rejected"], part["tokens_out"] = part["rejected"] + reasons, part["tokens_out"] + tokens
    return parts


def read_block(block: str, words: Vocabulary, question: Question | None = None) -> tuple[dict, str]:
    """(a row's facts, "") of a text with lines Topic, Difficulty, Question and Answer, or ({}, why not).

    What follows an empty line after the answer is the model going on with the next example and is left away. With a
    question the text begins at "Answer:".
    """
    if question is None:
        head = re.match(r"\s*Topic:(.*)\nDifficulty:(.*)\nQuestion:((?:.|\n)*?)\nAnswer:", block)
        if head is None:
            return {}, "no lines Topic, Difficulty, Question and Answer"
        topic, level, prompt = (part.strip() for part in head.groups())
        if level not in ("1", "2", "3"):
            return {}, "field 'difficulty' must be 1 to 3"
        rest = block[head.end() :]
    else:
        topic, level, prompt, rest = question.topic, question.difficulty, question.text, block.removeprefix("Answer:")
    thought, end, answer = rest.strip().partition(words.end)
    if not thought.startswith(words.begin):
        return {}, f"the answer does not begin with {words.begin}"
    if not end:
        return {}, f"the thought is not closed with {words.end}"
    answer = answer.strip().split("\n")[0]
    facts = {"prompt": prompt, "reasoning": thought + end, "answer": answer, "difficulty": int(level), "topic": topic}
    return facts, ""


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8], "big") >> 1


def _load(config: LocalTeacherConfig) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(config.model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{folder}: no causal language model can be loaded from there ({cause})") from error
    return model.to(config.device), tokenizer


class _Teacher:
    """Samples continuations of texts, a batch at a time."""

    def __init__(self, config: LocalTeacherConfig, model: Any, tokenizer: Any):
        self.config, self.model, self.tokenizer = config, model.eval(), tokenizer
        stops = getattr(model.generation_config, "eos_token_id", None)
        stops = stops if isinstance(stops, list) else [stops]
        self.stops = {one for one in (*stops, tokenizer.eos_token_id) if one is not None}
        self.pad = next((one for one in (tokenizer.pad_token_id, *sorted(self.stops)) if one is not None), 0)

    def write(self, texts: list[str], seed: int) -> list[tuple[str, int]]:
        """The continuation of each text and its tokens. The caller's random state is left as it was."""
        import torch

        rows = [self.tokenizer(text)["input_ids"] for text in texts]
        width = max(map(len, rows))
        room = getattr(self.model.config, "max_position_embeddings", None)
        if room and width + self.config.max_new_tokens > room:
            raise DataError(
                f"{self.config.source} has a context of {room} tokens; the examples take {width} and max_new_tokens "
                f"{self.config.max_new_tokens}. Take fewer shots or fewer new tokens."
            )
        input_ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in rows], device=self.config.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.config.device)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(seed)
            output = self.model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                do_sample=True,
                temperature=self.config.temperature,
                top_p=self.config.top_p,
                max_new_tokens=self.config.max_new_tokens,
                pad_token_id=self.pad,
            )
        new = [self._until_stop(row) for row in output[:, width:].tolist()]
        return [(self.tokenizer.decode(row), len(row)) for row in new]

    def _until_stop(self, row: list[int]) -> list[int]:
        """A special token may be one of the vocabulary's own, so only what ends a text is left away."""
        end = next((at for at, token in enumerate(row) if token in self.stops), len(row))
        return row[:end]
