"""Continuations of questions with and without a prompt: sampled, read, and two models compared on them.

    y ~ P(. | u, x)                                              continuations of the prompted model, temperature 1
    KL = sum_t KL( P(. | u, x, y_<t) || Q(. | x, y_<t) )         in nats per continuation, over the whole vocabulary

u is the prompt, x a question (prompt baking, 2409.13697). A model is read through its public forward, whatever its
architecture.

Shape legend: N rows, C tokens of the longest continuation, V vocabulary.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

Ids = Sequence[int]
#: Numbers of one softmax that are in memory at once when continuations are compared (16 MiB in float32).
ELEMENTS = 2**22


@dataclass(frozen=True)
class PromptedQuestions:
    """The same questions with the prompt and without: prompted[i] and bare[i] are token ids that end in question i.

    Raises ValueError where there is no question, or where the prompt adds nothing to one.
    """

    prompted: tuple[tuple[int, ...], ...]
    bare: tuple[tuple[int, ...], ...]

    def __post_init__(self):
        if not self.bare:
            raise ValueError("there are no questions: a prompt can only be measured or baked on at least one")
        if len(self.bare) != len(self.prompted):
            raise ValueError(f"{len(self.prompted)} questions with the prompt and {len(self.bare)} without: must agree")
        for i, (prompted, bare) in enumerate(zip(self.prompted, self.bare, strict=True)):
            if not bare:
                raise ValueError(f"question {i} has no token: nothing could follow it once the prompt is gone")
            if prompted == bare:
                raise ValueError(f"the prompt is empty: question {i} is the same with it and without it")

    def __len__(self) -> int:
        return len(self.bare)

    @classmethod
    def from_ids(cls, prompt: Ids, questions: Sequence[Ids], start: Ids = ()) -> "PromptedQuestions":
        """`start` (a first token, where the model wants one), then the prompt or nothing, then the question."""
        prompted = tuple((*start, *prompt, *question) for question in questions)
        return cls(prompted, tuple((*start, *question) for question in questions))

    @classmethod
    def from_text(cls, tokenizer, prompt: str, questions: Sequence[str]) -> "PromptedQuestions":
        """Through the tokenizer's chat template, the prompt as the system message; without one, prompt + question."""
        if not prompt.strip():
            raise ValueError("the prompt is empty: there is nothing to bake")
        if getattr(tokenizer, "chat_template", None):
            asked = [[{"role": "user", "content": question}] for question in questions]
            told = [[{"role": "system", "content": prompt}, *messages] for messages in asked]
            return cls(*(tuple(_chat_ids(tokenizer, one) for one in chats) for chats in (told, asked)))
        start = [i for i in tokenizer("")["input_ids"] if i == tokenizer.bos_token_id]
        prompt_ids, *ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, *questions))
        return cls.from_ids(prompt_ids, ids, start)


def _chat_ids(tokenizer, messages: list[dict]) -> tuple[int, ...]:
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def shuffled(prompt: Sequence, seed: int) -> list:
    """The control's prompt: the same tokens (or words) in another order. Raises ValueError where there is none."""
    if len(set(prompt)) < 2:
        raise ValueError("a prompt of fewer than two different tokens has no other order: take another control")
    generator, order = np.random.default_rng(seed), list(prompt)
    while order == list(prompt):
        order = [prompt[i] for i in generator.permutation(len(prompt))]
    return order


class Read(NamedTuple):
    """What a model expects at the tokens of continuations: logits [N, C, V]; targets [N, C]; real [N, C], not padding.

    The logits are the model's own tensor where it allows that, so that nothing of their size is copied.
    """

    logits: Tensor
    targets: Tensor
    real: Tensor


def read_continuations(model: torch.nn.Module, contexts: Sequence[Ids], continuations: Sequence[Ids]) -> Read:
    """One forward pass over [padding | context | continuation | padding]; logits of the continuations alone.

    Contexts end in one column, so the logits wanted are the last C + 1 of every row but the last one; positions count
    the real tokens only, so a row reads as it would by itself.
    """
    device, before, after = next(model.parameters()).device, max(map(len, contexts)), max(map(len, continuations))
    input_ids = torch.zeros((len(contexts), before + after), dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        columns = slice(before - len(context), before + len(continuation))
        input_ids[row, columns] = torch.tensor([*context, *continuation])
        mask[row, columns] = 1
    input_ids, mask = input_ids.to(device), mask.to(device)
    accepted = inspect.signature(model.forward).parameters
    options = {}
    if "position_ids" in accepted:
        options["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = after + 1
    logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False, **options).logits
    return Read(logits[:, -after - 1 : -1], input_ids[:, before:], mask[:, before:].bool())


def kl_per_continuation(teacher: Read, student: Read, rows_at_once: int | None = None) -> Tensor:
    """sum_t KL(teacher || student) [N] in nats, float32 or better; differentiable in the student's logits.

    `rows_at_once` positions are normalised at a time and computed again for the gradient, so that beside the two
    models' logits no tensor of their size is ever held.
    """
    chunks = _positions(teacher, rows_at_once)
    arguments = ((teacher.logits, student.logits, row, token) for row, token in chunks)
    parts = [checkpoint(_kl, *a, use_reentrant=False, preserve_rng_state=False) for a in arguments]
    rows = torch.cat([row for row, _ in chunks])
    values = torch.cat(parts)
    return values.new_zeros(len(teacher.real)).index_add(0, rows, values)


def _kl(teacher: Tensor, student: Tensor, row: Tensor, token: Tensor) -> Tensor:
    log_p, log_q = _log_softmax(teacher[row, token]), _log_softmax(student[row, token])
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def log_likelihoods(read: Read, rows_at_once: int | None = None) -> Tensor:
    """log P(y | context) [N] in nats: the sum over the tokens of each continuation."""
    total = torch.zeros(len(read.real), dtype=torch.float64, device=read.logits.device)
    for row, token in _positions(read, rows_at_once):
        own = _log_softmax(read.logits[row, token]).gather(-1, read.targets[row, token, None])[:, 0]
        total = total.index_add(0, row, own.double())
    return total


def _positions(read: Read, rows_at_once: int | None) -> list[tuple[Tensor, Tensor]]:
    """Row and column of every real token, in portions."""
    size = rows_at_once or max(1, ELEMENTS // read.logits.shape[-1])
    return list(zip(*(index.split(size) for index in read.real.nonzero(as_tuple=True)), strict=True))


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)


class _Draw(LogitsProcessor):
    """Leaves of every row's tokens the one that its next number u [N, C] falls on: a draw from the softmax."""

    def __init__(self, numbers: Tensor):
        self.numbers, self.column = numbers, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        sums = scores.double().softmax(-1).cumsum(-1)
        drawn = (sums <= self.numbers[:, self.column, None] * sums[:, -1:]).sum(-1, keepdim=True)
        self.column += 1
        return torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)


@torch.no_grad()
def sample_continuations(
    model: torch.nn.Module, contexts: Sequence[Ids], *, max_new_tokens: int, seed: int, batch_size: int = 64
) -> list[list[int]]:
    """One continuation of each context drawn at temperature 1 from the model itself, up to and with its end token.

    Neither the settings that the model ships for generation (top-p, repetition penalty) nor any global random state
    take part: row i draws by its own numbers, whatever it is batched with.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand((len(contexts), max_new_tokens), generator=generator, dtype=torch.float64)
    own, device = model.generation_config, next(model.parameters()).device
    stop = own.eos_token_id if own.eos_token_id is not None else model.config.eos_token_id
    plain = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=stop, pad_token_id=0)
    stops, found = set(stop if isinstance(stop, list) else [stop]), []
    model.generation_config = plain
    try:
        for first in range(0, len(contexts), batch_size):
            rows = contexts[first : first + batch_size]
            longest = max(map(len, rows))
            input_ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows], device=device)
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
            draw = LogitsProcessorList([_Draw(numbers[first : first + batch_size].to(device))])
            generated = model.generate(input_ids, attention_mask=mask, logits_processor=draw)
            found += [_until(row, stops) for row in generated[:, longest:].tolist()]
    finally:
        model.generation_config = own
    return found


def _until(tokens: list[int], stops: set) -> list[int]:
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens) - 1)
    return tokens[: end + 1]
