"""Long-range recall: pairs are shown first, filler follows, and one key is asked at a set distance. A test of memory,
not of language."""

from typing import TYPE_CHECKING, NamedTuple

from forgelib.data import DataError

if TYPE_CHECKING:
    import torch

#: Token ids: 0 ends a text, 1 asks, then the keys, then the values, then the filler.
ASK = 1


class RecallBatch(NamedTuple):
    """`input_ids`, `labels`: int64 [B, T] (labels -100 but at the answer, not shifted); `answer_positions`: int64 [B],
    where the answer stands; `vocab_size`: how many token ids occur."""

    input_ids: "torch.Tensor"
    labels: "torch.Tensor"
    answer_positions: "torch.Tensor"
    vocab_size: int


def recall_batch(
    n: int, seq_len: int, distance: int, n_keys: int, n_values: int, seed: int, *, n_pairs: int = 4, n_filler: int = 16
) -> RecallBatch:
    """Associative recall over `distance` tokens (the task of Zoology, Arora et al. 2023, with filler between).

    A row: filler, then `n_pairs` distinct keys each followed by a random value, filler, then the ask token, one of the
    keys and, last, its value.
    The asked key is shown exactly `distance` tokens before the place where its value is to be predicted, that is
    before the second standing of the key; values are drawn with repetition, so guessing scores 1 / n_values. Raises
    DataError when the row cannot hold the distance.
    """
    import torch

    if not 1 <= n_pairs <= n_keys or n_values < 2 or n_filler < 1:
        raise DataError(
            f"n_pairs={n_pairs}, n_keys={n_keys}, n_values={n_values}, n_filler={n_filler}: "
            "need 1 <= n_pairs <= n_keys, at least 2 values and 1 filler token"
        )
    shortest, longest = 2 * n_pairs + 1, seq_len - 2 * n_pairs
    if not shortest <= distance <= longest:
        raise DataError(
            f"distance is {distance}; with {n_pairs} pairs in {seq_len} tokens it lies between {shortest} and {longest}"
        )
    generator = torch.Generator().manual_seed(seed)
    first_key, first_value = 2, 2 + n_keys
    first_filler = first_value + n_values
    ids = torch.randint(first_filler, first_filler + n_filler, (n, seq_len), generator=generator)
    keys = first_key + torch.rand(n, n_keys, generator=generator).argsort(dim=1)[:, :n_pairs]  # [n, n_pairs]
    values = first_value + torch.randint(n_values, (n, n_pairs), generator=generator)
    asked = torch.randint(n_pairs, (n,), generator=generator)
    rows = torch.arange(n)
    query = seq_len - 2
    start = (
        query - distance - 2 * asked
    )  # where the row's first pair begins, so that the asked key stands at query - distance
    for pair in range(n_pairs):
        ids[rows, start + 2 * pair] = keys[:, pair]
        ids[rows, start + 2 * pair + 1] = values[:, pair]
    ids[:, query - 1] = ASK
    ids[:, query] = keys[rows, asked]
    ids[:, query + 1] = values[rows, asked]
    labels = torch.full_like(ids, -100)
    labels[:, -1] = ids[:, -1]
    return RecallBatch(ids, labels, torch.full((n,), seq_len - 1), first_filler + n_filler)
