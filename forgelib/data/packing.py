"""Examples to token ids, and token ids to rows of one length."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from forgelib.data import DataError, Example

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast


def encode_examples(
    tokenizer: "PreTrainedTokenizerFast", examples: Sequence[Example]
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) of every example, without special tokens.

    Prompt and answer are encoded apart: byte-pair merges across their border would make the prompt that is trained on
    differ from the prompt that is asked. Training reads prompt + answer + end of text; a test feeds the prompt ids
    alone.
    """
    encode = tokenizer.backend_tokenizer.encode_batch_fast
    prompts = encode([example.prompt for example in examples], add_special_tokens=False)
    answers = encode([example.continuation for example in examples], add_special_tokens=False)
    return [(prompt.ids, answer.ids) for prompt, answer in zip(prompts, answers, strict=True)]


def pack(documents: Iterable[Sequence[int]], seq_len: int, eos_id: int) -> "torch.Tensor":
    """Documents joined end to end, `eos_id` after each, cut into rows: int32 [N, seq_len].

    The last row is filled up from the beginning of the stream, so no token is lost and none is padding. A document may
    continue in the next row. Raises DataError when there is no document.
    """
    import torch

    if seq_len < 2:
        raise DataError(f"seq_len is {seq_len}; a row needs at least 2 tokens to have one to predict")
    parts = [np.asarray([*document, eos_id], dtype=np.int32) for document in documents]
    if not parts:
        raise DataError("nothing to pack: there are no documents")
    stream = np.concatenate(parts)
    rows = -(-len(stream) // seq_len)
    return torch.from_numpy(np.resize(stream, rows * seq_len).reshape(rows, seq_len).copy())
