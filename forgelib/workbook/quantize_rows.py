"""What `forge quantize` calibrates, fine-tunes and measures on.

A model whose tokenizer knows thinking tokens gets reasoning rows: what it was baked on, in a draw of its own. Any other
gets rows of the datasets, each a prompt with its answer, as many of each. Quality is what such a model can do: right
answers by strategy or of the asked dataset, and the probability of a held-out token by category. It is judged by the
first where the model was right often enough before; of a model that never is, no answer can be lost.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from forgelib.core.rng import stream
from forgelib.data import DataError, Example, Vocabulary, encode_examples, vocabulary
from forgelib.data.catalogue import CATALOGUE
from forgelib.data.prepare import load_rows
from forgelib.data.traces import procedural_rows
from forgelib.evaluate.accuracy import first_line, greedy_texts
from forgelib.evaluate.reasoning import reason
from forgelib.phases.bake import Encoded, encode, encode_both_ways, padded, shown_in
from forgelib.phases.quantize import Batch, calibration_loss
from forgelib.workbook import abtest

#: Right answers that a model must have given before, to be judged by them.
ENOUGH_RIGHT = 10
#: Rows read together where a loss is measured.
TOGETHER = 8
PRESETS = ("forge-12", "forge-8", "startofthought")


@dataclass(frozen=True)
class Found:
    """What a model can do. right: share of right answers by strategy or dataset, `asked` questions in all;
    probability: of a held-out token, by category (the geometric mean, exp of minus the loss)."""

    right: dict[str, float]
    probability: dict[str, float]
    asked: int

    def judged(self, before: "Found") -> dict[str, float]:
        """The part of this that counts, by what `before` could do."""
        return self.right if enough_right(before) else self.probability


def enough_right(before: Found) -> bool:
    """Whether right answers can tell a drop: the model gave at least ENOUGH_RIGHT of them."""
    return bool(before.right) and sum(before.right.values()) / len(before.right) * before.asked >= ENOUGH_RIGHT


@dataclass(frozen=True)
class Material:
    """shown: the rows of an epoch, input_ids and labels; calibration: batches of some of them; measure: what a model
    can do on rows held out; source: one sentence about all of it."""

    shown: Callable[[int], Sequence[Encoded]]
    calibration: list[Batch]
    measure: Callable[[nn.Module], Found]
    source: str


def known_words(tokenizer) -> Vocabulary | None:
    """The thinking vocabulary whose tokens the tokenizer knows, or None."""
    known = tokenizer.get_vocab()
    return next((words for words in map(vocabulary, PRESETS) if all(token in known for token in words.tokens)), None)


def material(tokenizer, n_rows: int, n_calibration: int, asked: tuple[str, int], options) -> Material:
    """Rows for this tokenizer. asked: dataset ("" for none) and questions; options: seed, data, difficulty,
    direct_share, held_rows, max_tokens, max_new_tokens. Raises DataError where rows are missing."""
    words = known_words(tokenizer)
    if words is None:
        return _of_datasets(tokenizer, n_rows, n_calibration, asked, options)
    return _of_thoughts(tokenizer, words, n_rows, n_calibration, asked, options)


def _of_thoughts(
    tokenizer, words: Vocabulary, n_rows: int, n_calibration: int, asked: tuple[str, int], options
) -> Material:
    how = {
        "seed": options.seed,
        "strategies": tuple(words.tag_of),
        "difficulties": tuple(range(1, options.difficulty + 1)),
    }
    rows = procedural_rows(n_rows, words, part="train", **how)
    held = procedural_rows(options.held_rows, words, part="validation", **how)
    pairs = _shuffled(encode_both_ways(tokenizer, rows, options.max_tokens), options.seed)
    pad = pad_of(tokenizer)
    batches = {"reasoning": batched(encode(tokenizer, held, options.max_tokens), pad)}
    questions, told = _questions(asked, options)

    def measure(model: nn.Module) -> Found:
        found = reason(model, tokenizer, words, held, max_new_tokens=options.max_new_tokens, batch_size=16)
        right = {name: float(correct.mean()) for name, correct in found.by_strategy().items()}
        right |= _right(model, tokenizer, questions, options.max_new_tokens, lambda text: words.read(text).answer)
        return Found(right, probabilities(model, batches), len(held) + len(questions))

    source = f"{len(rows)} reasoning rows ({words.name}) to train on, {len(held)} held out{told}"
    calibration = batched([thought for thought, _ in pairs[:n_calibration]], pad)
    return Material(lambda epoch: shown_in(epoch, pairs, options), calibration, measure, source)


def _of_datasets(tokenizer, n_rows: int, n_calibration: int, asked: tuple[str, int], options) -> Material:
    names, train, held, sources = [n for n, spec in CATALOGUE.items() if not spec.optional], [], defaultdict(list), {}
    for name in names:
        share = -(-n_rows // len(names))
        found = load_rows(name, "train", source=options.data, limit=share, seed=options.seed).examples
        train += found
        sources[name] = found[0].source if found else "nothing"
        some = -(-options.held_rows // len(names))
        for example in load_rows(name, "heldout", source=options.data, limit=some, seed=options.seed).examples:
            held[example.category].append(example)
    encoded = _shuffled(_texts(tokenizer, train, options.max_tokens), options.seed)[:n_rows]
    if not encoded:
        raise DataError(f"no row of the datasets is short enough: max_tokens is {options.max_tokens}")
    pad = pad_of(tokenizer)
    batches = {name: batched(_texts(tokenizer, some, options.max_tokens), pad) for name, some in held.items()}
    questions, told = _questions(asked, options)

    def measure(model: nn.Module) -> Found:
        right = _right(model, tokenizer, questions, options.max_new_tokens)
        return Found(right, probabilities(model, batches), len(questions))

    kinds = ", ".join(f"{sum(s == kind for s in sources.values())} {kind}" for kind in sorted(set(sources.values())))
    source = f"rows of {len(names)} datasets ({kinds}){told}"
    return Material(lambda epoch: encoded, batched(encoded[:n_calibration], pad), measure, source)


def _questions(asked: tuple[str, int], options) -> tuple[list[Example], str]:
    """Unseen questions of the asked dataset, and what is told of them; none where none is asked for."""
    name, n = asked
    if not name:
        return [], ""
    questions = abtest.unseen_examples(name, n, options.seed, options.data)
    fewer = f", {n} were asked for" * (len(questions) < n)
    return questions, f"; {len(questions)} questions of {name} ({questions[0].source}{fewer})" if questions else ""


def _right(
    model: nn.Module,
    tokenizer,
    questions: Sequence[Example],
    max_new_tokens: int,
    answer_of: Callable[[str], str] = str,
) -> dict[str, float]:
    """Share of right greedy answers; none where nothing is asked. answer_of: what of a written text is the answer."""
    if not questions:
        return {}
    prompts = [question.prompt for question in questions]
    texts = greedy_texts(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=16)
    same = abtest.comparison(questions[0].dataset)
    right = [
        same(first_line(answer_of(text)), question.answer) for text, question in zip(texts, questions, strict=True)
    ]
    return {questions[0].dataset: sum(right) / len(right)}


def _texts(tokenizer, examples: Sequence[Example], max_tokens: int) -> list[Encoded]:
    """Prompt, answer and end of text, all of it with a label, cut to max_tokens."""
    pairs = encode_examples(tokenizer, examples) if examples else []
    ids = [(prompt + answer + [tokenizer.eos_token_id])[:max_tokens] for prompt, answer in pairs]
    return [(one, one) for one in ids if len(one) > 1]


def _shuffled(rows: list, seed: int) -> list:
    random.Random(stream(seed, "quantize rows")).shuffle(rows)
    return rows


def pad_of(tokenizer) -> int:
    """The token that fills a batch."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def batched(encoded: Sequence[Encoded], pad: int) -> list[Batch]:
    """Batches of rows of like length."""
    rows = sorted(encoded, key=lambda row: len(row[0]))
    return [padded(rows[i : i + TOGETHER], pad) for i in range(0, len(rows), TOGETHER)]


def probabilities(model: nn.Module, batches: dict[str, list[Batch]]) -> dict[str, float]:
    """Probability of a labelled token in each category: the geometric mean."""
    was_training, device = model.training, next((p.device for p in model.parameters()), torch.device("cpu"))
    model.eval()
    found = {}
    for name, some in batches.items():
        moved = [(ids.to(device), labels.to(device)) for ids, labels in some]
        found[name] = math.exp(-calibration_loss(model, moved))
    model.train(was_training)
    return found
