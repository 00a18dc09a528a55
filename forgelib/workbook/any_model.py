"""A model from outside: a local Hugging Face folder or a GGUF file, read whole, or refused with the reason.

transformers fills weights that a file lacks with random numbers, and reads an encoder as if it wrote text; both would
be measured, rounded and exported like any model.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import forgelib.models  # noqa: F401 (registers Cognate with the Auto classes)
from forgelib.workbook.params import ParameterError

#: How much of the largest logit may move where a later token is another one: sums of experts differ in rounding.
LOOKS_AHEAD = 1e-4
#: How near two losses are that differ in rounding only, as a share.
SAME_LOSS = 1e-3
#: What configurations call the context's length; MPT and RWKV have names of their own.
CONTEXT = ("max_position_embeddings", "max_seq_len", "context_length")
#: How many names a refusal lists.
NAMED = 3


def load_any(path: Path, device: str) -> tuple[nn.Module, object]:
    """Model (float32) and tokenizer of a Hugging Face folder or a GGUF file that transformers can read.

    Raises ParameterError for what cannot be read, lacks weights, holds NaN, sees later tokens, or does not belong
    together.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, how = place(path)
    how |= {"local_files_only": True, "trust_remote_code": False}  # not even asked for: a folder's code never runs
    tokenizer = _read(path, "its tokenizer", lambda: AutoTokenizer.from_pretrained(folder, **how))
    load = partial(AutoModelForCausalLM.from_pretrained, ignore_mismatched_sizes=True, output_loading_info=True)
    model, told = _read(path, "the model", lambda: load(folder, dtype=torch.float32, **how))
    if wrong := _lacking(told) or _read(path, "a pass through it", lambda: _flaw(model.eval(), tokenizer)):
        added = ", or transformers added a token to it: give the folder that the file was made from"
        raise ParameterError(f"--model {path}: {wrong}{added * ('gguf_file' in how and 'different models' in wrong)}")
    if "gguf_file" in how:  # its weights are plain float32 now; marked as quantized, they could never be saved
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
    return model.to(device), tokenizer


def context(model: nn.Module) -> int | None:
    """Tokens that the model reads at most, where its configuration names a limit."""
    config = model.config.get_text_config()
    return next((getattr(config, name) for name in CONTEXT if getattr(config, name, None)), None)


def place(path: Path) -> tuple[Path, dict[str, str]]:
    """The folder to read from, and the GGUF file in it where it is one."""
    if path.is_file() and path.suffix.lower() == ".gguf":
        return path.parent, {"gguf_file": path.name}
    if (path / "packed.json").is_file():
        raise ParameterError(f"--model {path}: is packed already; forgelib.quant.load_packed reads it")
    if (path / "packed" / "packed.json").is_file():
        raise ParameterError(f"--model {path}: is what forge quantize wrote: its models lie in the folders below")
    if (path / "adapter_config.json").is_file():
        raise ParameterError(f"--model {path}: holds an adapter: merge it into its model first, with peft")
    if (path / "config.json").is_file():
        if _quantized(path / "config.json"):
            raise ParameterError(f"--model {path}: is quantized already: give the model that it was made from")
        return path, {}
    raise ParameterError(f"--model {path}: is neither a folder with a config.json nor a .gguf file")


def _quantized(config: Path) -> bool:
    """Whether a configuration says so; one that cannot be read says nothing here."""
    try:
        return bool(json.loads(config.read_text()).get("quantization_config"))
    except (OSError, ValueError, AttributeError):
        return False


def _read(path: Path, part: str, read: Callable[[], Any]) -> Any:
    """What `read` returns. Damaged files raise anything: errors of the libraries, of arithmetic, of missing keys."""
    try:
        return read()
    except Exception as error:
        said = " ".join(str(error).split())
        raise ParameterError(f"--model {path}: cannot be read ({part}: {type(error).__name__}: {said[:300]})") from None


def _lacking(told: dict) -> str:
    """Which weights random numbers stand in for; "" for none."""
    if told["mismatched_keys"]:
        name, stored, wanted = min(told["mismatched_keys"])
        return f"{name} is {list(stored)} in its files, its config.json wants {list(wanted)}: they differ"
    missing = sorted(told["missing_keys"])
    if not missing:
        return ""
    return f"{_some(missing)} not in its files, and random numbers would stand in: copy the missing files"


def _flaw(model: nn.Module, tokenizer) -> str:
    """Why these are no language model and its tokenizer; "" where they are."""
    damaged = [name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())]
    if damaged:
        return f"NaN or infinity in its weights: {_some(damaged)} damaged"
    if tokenizer.eos_token_id is None:
        return "its tokenizer has no end of text, so no answer would ever end"
    if not tokenizer.is_fast:
        return "its tokenizer is a slow one: save it with a tokenizer.json (a fast tokenizer)"
    rows = model.get_input_embeddings().weight.shape[0]
    last = max(tokenizer.get_vocab().values(), default=0)
    if last >= rows:
        return f"its tokenizer has token {last} and its embedding {rows} rows: they belong to different models"
    if _looks_ahead(model, rows):
        return "it sees later tokens, so it is no causal language model"
    if _repeats(model, rows):
        return "its class measures how well it repeats a token, not how well it tells the next one"
    return ""


def _some(names: list[str]) -> str:
    """ "a, b, c and 5 more are"."""
    shown = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
    return f"{shown} {'are' if len(names) > 1 else 'is'}"


@torch.no_grad()
def _looks_ahead(model: nn.Module, vocab_size: int) -> bool:
    """Whether logits move where only a later token is another one."""
    ids = torch.arange(8)[None] % vocab_size
    other = ids.clone()
    other[0, -1] = vocab_size - 1
    first, second = (model(input_ids=each, use_cache=False).logits[:, :-1].float() for each in (ids, other))
    return float((first - second).abs().max()) > LOOKS_AHEAD * float(first.abs().max())


@torch.no_grad()
def _repeats(model: nn.Module, vocab_size: int) -> bool:
    """Whether the loss of its class compares a token's logits with that token itself, as decoders of BART's kind do."""
    ids = torch.arange(8)[None] % vocab_size
    found = model(input_ids=ids, labels=ids)
    logits = found.logits[0].float()
    following, itself = (float(F.cross_entropy(*pair)) for pair in ((logits[:-1], ids[0, 1:]), (logits, ids[0])))
    same = [abs(float(found.loss) - loss) <= SAME_LOSS * loss for loss in (following, itself)]
    return same == [False, True]
