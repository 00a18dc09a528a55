"""A fast byte-level BPE tokenizer as the fields that GGUF has for one.

llama.cpp has its own splitters of text before the merges, known by name: "gpt-2" is GPT-2's pattern, "smollm" splits
digits singly first. A tokenizer that splits otherwise, or is no byte-level BPE, is not written: a file that tokenizes a
little differently would be a worse one than a file without a tokenizer. llama.cpp loads such a file, but its programs
read and print text, and stop at the first token.
"""

import json
from dataclasses import dataclass

from gguf import TokenType


@dataclass(frozen=True)
class TokenizerFields:
    """tokens in the order of their ids, their types, merges "a b" in the order of their rank, special ids or None."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None
    add_bos: bool


def tokenizer_fields(tokenizer, vocab_size: int) -> tuple[TokenizerFields | None, str]:
    """The fields, or None and why there are none. vocab_size: rows of the embedding; ids without a token are unused."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        return None, "the tokenizer is a slow one, without a tokenizer.json"
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    pre, why_not = _splitter(stored)
    why_not = why_not or _other_rules(stored)
    if why_not:
        return None, why_not
    begins, ends = _frame(tokenizer)
    if ends or begins not in ([], [tokenizer.bos_token_id]):
        return None, "the tokenizer puts other tokens around a text than one that begins it"
    vocabulary = {**stored["model"]["vocab"], **{added["content"]: added["id"] for added in stored["added_tokens"]}}
    if max(vocabulary.values()) >= vocab_size:
        return None, f"the tokenizer has the id {max(vocabulary.values())}, the model {vocab_size} rows"
    tokens = [f"[unused {i}]" for i in range(vocab_size)]
    types = [int(TokenType.UNUSED)] * vocab_size
    for token, i in vocabulary.items():
        tokens[i], types[i] = token, int(TokenType.NORMAL)
    for added in stored["added_tokens"]:
        types[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["model"]["merges"]]
    ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
    return TokenizerFields(pre, tokens, types, merges, *ids, bool(begins)), ""


def _frame(tokenizer) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text of its own accord."""
    plain, framed = (tokenizer("a", add_special_tokens=own)["input_ids"] for own in (False, True))
    first = next(i for i in range(len(framed) + 1) if framed[i : i + len(plain)] == plain)
    return framed[:first], framed[first + len(plain) :]


def _other_rules(stored: dict) -> str:
    """What the tokenizer does and llama.cpp would not; "" for nothing."""
    for name in ("ignore_merges", "end_of_word_suffix", "continuing_subword_prefix", "dropout"):
        if stored["model"].get(name):
            return f"the tokenizer has {name}, which llama.cpp does not know"
    for added in stored["added_tokens"]:
        if found := [name for name in ("lstrip", "rstrip", "single_word") if added[name]]:
            return f"its token {added['content']} is cut out of text by rules of its own ({', '.join(found)})"
    return ""


def _splitter(stored: dict) -> tuple[str | None, str]:
    """llama.cpp's name of how the text is split, or None and why there is none."""
    if stored["model"]["type"] != "BPE" or stored["model"].get("byte_fallback"):
        return None, f"the tokenizer is a {stored['model']['type']}, no byte-level BPE"
    if stored["normalizer"] is not None:
        return None, f"the tokenizer normalizes text ({stored['normalizer']['type']})"
    split = stored["pre_tokenizer"] or {"type": "nothing"}
    parts = split["pretokenizers"] if split["type"] == "Sequence" else [split]
    kinds = [part["type"] for part in parts]
    bytes_ = parts[-1]
    plain = kinds[-1:] == ["ByteLevel"] and bytes_.get("use_regex", True) and not bytes_.get("add_prefix_space")
    if plain and kinds == ["ByteLevel"]:
        return "gpt-2", ""
    if plain and kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"]:
        return "smollm", ""
    return None, f"the tokenizer splits text by {' and '.join(kinds)}, for which llama.cpp has no name here"
