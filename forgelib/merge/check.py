"""Parents before a merge: whether they fit together, asked before any work starts. The first mismatch is named."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .weights import LazyWeights, MergeRefused, Weights, read_lazily, same_names

#: What a configuration may say differently: where it was saved and how it is to be run.
NO_MATTER = {"_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
#: What is compared first, because it explains the rest.
FIRST = (
    *("model_type", "architectures", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"),
    *("hidden_size", "num_hidden_layers", "num_attention_heads"),
)
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Parent:
    """A model as it is compared: what to call it, its weights, and its configuration and tokenizer if it has them."""

    label: str
    weights: Weights
    config: dict | None = None
    tokenizer: dict | None = None


def check_parents(
    parents: Sequence[Any], base: Any | None = None, may_differ: Collection[str] = (), labels: Sequence[str] = ()
) -> list[Weights]:
    """The weights of the parents, and of the trunk as the last where `base` is given, ready for a merge.

    Args:
        parents: at least two, each the folder (or .safetensors file) of a model, a model, or its state dict.
            Folders are read lazily: what is compared comes from their headers, values are read one tensor at a time.
        base: the trunk, in any of these forms; it must fit like a parent.
        may_differ: fields of the configuration that need not agree, such as dials that change no weight.
        labels: what to call the parents in an error; folders are called by their path.

    Raises MergeRefused, saying what differs or is broken, where, and what to do: fewer than two parents; a missing,
    damaged or cut file; another architecture, size, vocabulary or special token; other tensor names, shapes, types or
    ties; NaN or infinity; integer tensors that differ.
    """
    if len(parents) < 2:
        raise MergeRefused(f"{len(parents)} parents: a merge needs at least two models, of one architecture.")
    names = [*labels, *(f"parent {i}" for i in range(len(labels), len(parents)))]
    opened = [_open(model, label) for model, label in zip(parents, names, strict=True)]
    if base is not None:
        opened.append(_open(base, "the trunk"))
    first = opened[0]
    for other in opened[1:]:
        _compare_configs(first, other, may_differ)
        _compare_tokenizers(first, other)
        _compare_headers(first, other)
    same_names([parent.weights for parent in opened])
    for name in first.weights:
        _refuse_bad_values(name, opened)
    return [parent.weights for parent in opened]


def _open(model: Any, label: str) -> Parent:
    if isinstance(model, str | Path):
        path = Path(model)
        if not path.exists():
            raise MergeRefused(f"{path} is missing: there is no such model. Check the path, or make the model first.")
        weights = read_lazily(path)
        if path.is_file():
            return Parent(str(path), weights)
        return Parent(str(path), weights, _json(path / "config.json"), _json(path / "tokenizer.json", optional=True))
    if hasattr(model, "state_dict"):
        config = model.config.to_dict() if hasattr(model, "config") else None
        if config is not None:  # save_pretrained writes this one
            config["architectures"] = [type(model).__name__]
        return Parent(label, dict(model.state_dict()), config)
    return Parent(label, model)


def _json(file: Path, optional: bool = False) -> dict | None:
    if not file.is_file():
        if optional:
            return None
        raise MergeRefused(f"{file} is missing: what the weights are for is unknown. Save the model anew.")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise MergeRefused(f"{file} is not JSON ({error}). Save the model anew.") from None


def _compare_configs(first: Parent, other: Parent, may_differ: Collection[str]) -> None:
    if first.config is None or other.config is None:
        return
    # A field that only one of them has says nothing: a model in memory has more fields than a folder.
    fields = [*FIRST, *sorted({*first.config} & {*other.config} - {*FIRST} - NO_MATTER)]
    for field in (field for field in fields if field not in may_differ):
        a, b = first.config.get(field), other.config.get(field)
        if _plain(a) != _plain(b):
            raise MergeRefused(
                f"{field} is {a!r} in {first.label} and {b!r} in {other.label}. Weights are averaged only between "
                "models of one architecture, size and vocabulary, best between those trained from one trunk."
            )


def _plain(value: Any) -> Any:
    """As JSON would give it back, so that a model in memory compares with a folder."""
    return json.loads(json.dumps(value, default=str))


def _compare_tokenizers(first: Parent, other: Parent) -> None:
    if first.tokenizer is None or other.tokenizer is None:
        return
    for what, a, b in (
        ("special tokens", *(_special_tokens(p.tokenizer) for p in (first, other))),
        ("vocabulary", *(p.tokenizer.get("model", {}).get("vocab") for p in (first, other))),
    ):
        if a != b:
            raise MergeRefused(
                f"The tokenizer of {other.label} has another {what} than that of {first.label}: a token id would mean "
                "two things. Give all parents one tokenizer before they are trained."
            )


def _special_tokens(tokenizer: dict) -> list:
    return sorted((t["id"], t["content"], t.get("special")) for t in tokenizer.get("added_tokens", ()))


def _compare_headers(first: Parent, other: Parent) -> None:
    for name in sorted(set(first.weights) | set(other.weights)):
        for has, lacks in ((first, other), (other, first)):
            if name not in lacks.weights:
                raise MergeRefused(
                    f"{name} is in {has.label} and not in {lacks.label}: models of different build, or one was saved "
                    "with tied weights and one without. Save both from the same class."
                )
        a, b = _header(first.weights, name), _header(other.weights, name)
        if a != b:
            raise MergeRefused(
                f"{name} is {_words(a)} in {first.label} and {_words(b)} in {other.label}. Merge models of one size, "
                "saved in one type."
            )


def _header(weights: Weights, name: str) -> tuple[tuple[int, ...], Any]:
    if isinstance(weights, LazyWeights):
        shape, dtype = weights.header(name)
        return shape, DTYPES.get(dtype, dtype)
    return tuple(weights[name].shape), weights[name].dtype


def _words(header: tuple[tuple[int, ...], Any]) -> str:
    return f"{list(header[0])} {str(header[1]).removeprefix('torch.')}"


def _refuse_bad_values(name: str, opened: Sequence[Parent]) -> None:
    first = None
    for parent in opened:
        tensor = parent.weights[name]
        if not tensor.is_floating_point():
            first = tensor if first is None else first
            if not torch.equal(tensor, first):
                raise MergeRefused(
                    f"{name} in {parent.label} differs from {opened[0].label}: {tensor.dtype} has no mean. Make "
                    "it equal in all models."
                )
        elif not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
            raise MergeRefused(
                f"{name} in {parent.label} holds NaN or infinity, which every child would inherit. Go back to the last "
                "good checkpoint of that model."
            )
