"""Held-out examples as a search measures them: padded batches of similar length, one forward pass for loss and answer.

B texts of a batch, T tokens, padded on the right.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Batch:
    """input_ids, attention_mask and is_answer (the answer's own tokens), all [B, T]; `rows` are the texts' numbers."""

    input_ids: Tensor
    attention_mask: Tensor
    is_answer: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Texts:
    """Batches of texts and the category of each text, by its number: an index into `categories`, [n]."""

    batches: tuple[Batch, ...]
    category: np.ndarray
    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.category)

    @property
    def n_tokens(self) -> int:
        """Tokens that a model reads, padding left out."""
        return int(sum(batch.attention_mask.sum() for batch in self.batches))


@dataclass(frozen=True)
class Scores:
    """What one model did on n texts.

    losses [n] nats per token of each text; right [n] 1 where every token of the answer was the most likely one, nan for
    a text without an answer; operations: multiply-adds per token that its layers with weights really did; n_bytes: its
    weights, tied ones once.
    """

    losses: np.ndarray
    right: np.ndarray
    operations: float
    n_bytes: int


def batch_texts(
    encoded: Sequence[tuple[Sequence[int], Sequence[int]]],
    categories: Sequence[str],
    *,
    pad_token_id: int,
    max_tokens: int = 256,
    tokens_per_batch: int = 4096,
) -> Texts:
    """Batches of (prompt ids, answer ids), each with its category; texts longer than `max_tokens` lose their beginning.

    Raises ValueError where there is no text, or one of fewer than two tokens.
    """
    if not encoded or len(encoded) != len(categories):
        raise ValueError(f"need as many categories as texts and at least one: got {len(categories)}, {len(encoded)}")
    if short := [i for i, (prompt, answer) in enumerate(encoded) if len(prompt) + len(answer) < 2]:
        raise ValueError(f"text {short[0]} has fewer than two tokens: there is nothing to predict in it")
    ids = [([*prompt, *answer])[-max_tokens:] for prompt, answer in encoded]
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    batches, start = [], 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and len(ids[order[stop]]) * (stop + 1 - start) <= tokens_per_batch:
            stop += 1
        rows = order[start:stop]
        batches.append(_padded([ids[i] for i in rows], [len(encoded[i][1]) for i in rows], rows, pad_token_id))
        start = stop
    names = tuple(sorted(set(categories)))
    return Texts(tuple(batches), np.array([names.index(c) for c in categories]), names)


def _padded(ids: list[list[int]], answers: list[int], rows: list[int], pad: int) -> Batch:
    longest = max(map(len, ids))
    input_ids = torch.full((len(ids), longest), pad)
    mask = torch.zeros((len(ids), longest), dtype=torch.long)
    is_answer = torch.zeros((len(ids), longest), dtype=torch.bool)
    for row, (tokens, n_answer) in enumerate(zip(ids, answers, strict=True)):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        is_answer[row, max(1, len(tokens) - n_answer) : len(tokens)] = n_answer > 0
    return Batch(input_ids, mask, is_answer, torch.tensor(rows))


@torch.inference_mode()
def read_texts(forward: Callable[[Batch], Tensor], texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Losses [n] and right answers [n] from `forward(batch) -> logits [B, T, V]`.

    An answer counts as right where each of its tokens is the most likely one after the true tokens before it: exactly
    then greedy generation begins with it, so no generation is needed. Whether the text ends there is not asked.
    """
    losses, right = np.empty(len(texts)), np.full(len(texts), np.nan)
    for batch in texts.batches:
        logits = forward(batch)[:, :-1]
        targets, counted = batch.input_ids[:, 1:].to(logits.device), batch.attention_mask[:, 1:].to(logits.device)
        token_losses = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none") * counted
        rows = batch.rows.numpy()
        losses[rows] = (token_losses.sum(1) / counted.sum(1)).double().cpu().numpy()
        answer = batch.is_answer[:, 1:].to(logits.device)
        missed = ((logits.argmax(-1) != targets) & answer).any(1)
        asked = answer.any(1).cpu().numpy()
        right[rows] = np.where(asked, ~missed.cpu().numpy(), np.nan)
    return losses, right


def score_texts(model: torch.nn.Module, texts: Texts) -> Scores:
    """Read all texts once with any causal LM, as at inference (halting on); its training mode is restored."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    counter = OperationCounter(model)

    def forward(batch: Batch) -> Tensor:
        return model(
            input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device), use_cache=False
        ).logits

    try:
        losses, right = read_texts(forward, texts)
    finally:
        counter.remove()
        model.train(was_training)
    n_bytes = sum({p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}.values())
    return Scores(losses, right, counter.total / texts.n_tokens, n_bytes)


class OperationCounter:
    """Counts the multiply-adds of every layer with a weight matrix as it runs: a count, so no clock's noise is in it.

    A layer that is applied more often, as a recursion that does not halt, counts as often. Work without weights
    (attention scores, a memory's reads and writes) is not counted; it is the same for all models of one shape.
    """

    def __init__(self, model: torch.nn.Module):
        self.total = 0
        self._handles = [
            module.register_forward_hook(self._count)
            for module in model.modules()
            if not isinstance(module, torch.nn.Embedding) and getattr(getattr(module, "weight", None), "ndim", 0) == 2
        ]

    def _count(self, module: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
        self.total += output.numel() // output.shape[-1] * module.weight.numel()

    def remove(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()
