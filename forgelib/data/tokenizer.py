"""A tokenizer: GPT-2's when it is at hand and wanted, else a byte-level BPE trained on the rows."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from forgelib.data import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

GPT2 = "openai-community/gpt2"
END_OF_TEXT = "<|endoftext|>"
#: The fixed words of every prompt are one token each, so that short rows are not mostly frame.
FRAME = ("Passage:", "Question:", "\nQuestion:", "\nAnswer:", "\nA.", "\nB.", "\nC.", "\nD.")
_FRAME_PATTERN = re.compile("|".join(map(re.escape, FRAME)))
#: Characters of text that the BPE is trained on; the merges of a small vocabulary do not change beyond this.
TRAINING_CHARACTERS = 2_000_000


def load_or_train_tokenizer(
    texts: Iterable[str], vocab_size: int, gpt2: str | Path = "never"
) -> tuple["PreTrainedTokenizerFast", str]:
    """A fast tokenizer and one sentence that says which it is.

    gpt2: "never" trains a BPE of `vocab_size` on `texts`; "auto" takes GPT-2's 50,257 tokens from the Hugging Face
    cache or hub and trains its own where they cannot be had (the sentence says why); a path takes the tokenizer saved
    in that folder or raises DataError.
    End of text doubles as padding, as is usual for GPT-2.
    """
    if gpt2 == "never":
        return train_bpe(texts, vocab_size)
    try:
        tokenizer = _saved_tokenizer(str(gpt2)) if gpt2 != "auto" else _gpt2_tokenizer()
    except (OSError, ValueError, httpx.HTTPError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        if gpt2 != "auto":
            raise DataError(
                f"no tokenizer could be read from {gpt2}: {cause} Give a folder written by save_pretrained."
            ) from error
        tokenizer, description = train_bpe(texts, vocab_size)
        return tokenizer, f"{description}; GPT-2's is neither in the Hugging Face cache nor to be had ({cause})"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    place = "the Hugging Face cache or hub" if gpt2 == "auto" else str(gpt2)
    return tokenizer, f"tokenizer of {len(tokenizer)} tokens from {place}"


def _saved_tokenizer(folder: str) -> "PreTrainedTokenizerFast":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _gpt2_tokenizer() -> "PreTrainedTokenizerFast":
    """From the cache; where it is not there, from the hub, if that answers within three seconds."""
    from huggingface_hub import model_info
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(GPT2, local_files_only=True)
    except (OSError, ValueError):
        model_info(GPT2, timeout=3.0)
        return AutoTokenizer.from_pretrained(GPT2)


def train_bpe(texts: Iterable[str], vocab_size: int) -> tuple["PreTrainedTokenizerFast", str]:
    """Byte-level BPE [Sennrich et al. 2016; GPT-2's bytes] with single digits as tokens, so that a number is written
    digit by digit."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    smallest = 256 + 1 + len(FRAME)
    if vocab_size < smallest:
        raise DataError(
            f"vocab_size is {vocab_size}; a byte-level vocabulary needs at least {smallest} "
            "(256 bytes, end of text, the frame)"
        )
    sample = _sample(list(texts))
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(FRAME),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator((part for text in sample for part in _FRAME_PATTERN.split(text)), trainer)
    core.add_tokens([AddedToken(word, normalized=False) for word in FRAME])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )
    return tokenizer, f"byte-level BPE of {len(tokenizer)} tokens trained on {len(sample)} rows, digits split singly"


def _sample(texts: list[str]) -> list[str]:
    """Every k-th text, so that all datasets stay represented, within TRAINING_CHARACTERS."""
    if not texts:
        raise DataError("the tokenizer has no text to train on")
    total = sum(map(len, texts))
    return texts[:: -(-total // TRAINING_CHARACTERS)] if total else texts
