"""A thinking vocabulary on a model: tokens added to any tokenizer, rows added to any causal LM's embedding and head.

Old tokens keep their ids and, given old tokens, their logits. A new row starts at the mean of all rows, or of the rows
of words that the caller names for it, plus noise of a hundredth of the rows' own spread, so that new tokens differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from forgelib.core.rng import stream
from forgelib.data import Vocabulary

NOISE = 0.01


@dataclass(frozen=True)
class Added:
    """ids: of every token of the vocabulary, in its order; new: those that the tokenizer did not have; rows: of the
    embedding before and after."""

    ids: dict[str, int]
    new: tuple[str, ...]
    rows: tuple[int, int]


@torch.no_grad()
def add_vocabulary(
    model: nn.Module, tokenizer, words: Vocabulary, *, like: Mapping[str, str] | None = None, seed: int = 0
) -> Added:
    """Add the tokens of `words` to both, in place; a second time nothing changes.

    Args: like: token -> a text of the old tokenizer whose tokens' mean row the new one starts from. Tied heads stay
    tied; an embedding that is larger than its tokenizer is filled before it grows.
    Raises ValueError for a name in `like` that is no token of the vocabulary, or whose text is empty, and for a
    tokenizer and a model that do not belong together.
    """
    like = dict(like or {})
    if strangers := sorted(set(like) - set(words.tokens)):
        raise ValueError(f"like: {strangers[0]} is no token of {words.name}; these are {', '.join(words.tokens)}")
    before, had = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    if had > before:
        raise ValueError(f"the tokenizer has {had} tokens, the model only {before} rows: they do not belong together")
    sources = {token: tokenizer(text, add_special_tokens=False)["input_ids"] for token, text in like.items()}
    if empty := [token for token, ids in sources.items() if not ids]:
        raise ValueError(f"like: the text for {empty[0]} has no tokens")
    known = tokenizer.get_vocab()
    new = tuple(token for token in words.tokens if token not in known)
    _add_tokens(tokenizer, new)
    if len(tokenizer) > before:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in words.tokens}
    for matrix in _matrices(model):
        _start(matrix, had, {ids[token]: sources.get(token) for token in new}, seed)
    return Added(ids, new, (before, model.get_input_embeddings().weight.shape[0]))


def _add_tokens(tokenizer, tokens: tuple[str, ...]) -> None:
    """As one token each, wherever they stand, and not as special ones: decoding must show them."""
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])


def _matrices(model: nn.Module) -> list[Tensor]:
    """Embedding, head and the head's bias as a column; a tied head only once."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    found = [embedding.weight]
    if head is not None and head.weight is not embedding.weight:
        found.append(head.weight)
    if head is not None and getattr(head, "bias", None) is not None:
        found.append(head.bias[:, None])
    return found


def _start(matrix: Tensor, had: int, rows: Mapping[int, list[int] | None], seed: int) -> None:
    old = matrix[:had].float()
    mean, spread = old.mean(0), old.std(0)
    for row, source in rows.items():
        dice = torch.Generator().manual_seed(stream(seed, "thinking token", row, matrix.shape[1]))
        noise = NOISE * spread * torch.randn(matrix.shape[1], generator=dice).to(spread.device)
        matrix[row] = ((mean if source is None else old[source].mean(0)) + noise).to(matrix.dtype)
