"""Nested state to tensors and JSON, and back: how anything with a state_dict is stored without pickle."""

import json
from typing import Any

import torch
from torch import Tensor

TENSOR, DICT, LIST, TUPLE = "tensor", "dict", "list", "tuple"


def flatten(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Split `state` into its tensors by path and a JSON-able description of the rest.

    Understood: dicts with str, int or float keys, lists, tuples, tensors, str, int, float, bool, None.
    Raises TypeError naming the path of anything else.
    """
    tensors: dict[str, Tensor] = {}

    def visit(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            while path in tensors:  # "a/b" in one dict and "b" in a dict named "a"; 1 and "1" as keys
                path += "'"
            tensors[path] = value.detach()
            return {TENSOR: path}
        if isinstance(value, dict):
            return {DICT: [[_key(key, path), visit(item, f"{path}/{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            kind = LIST if isinstance(value, list) else TUPLE
            return {kind: [visit(item, f"{path}/{i}") for i, item in enumerate(value)]}
        if value is None or isinstance(value, str | int | float | bool):
            return value
        raise TypeError(
            f"state at {path or '/'} is a {type(value).__name__}: only tensors and plain values can be stored"
        )

    return tensors, visit(state, "")


def unflatten(tensors: dict[str, Tensor], meta: Any) -> Any:
    """The state that `flatten` took apart."""
    if not isinstance(meta, dict):
        return meta
    ((kind, body),) = meta.items()
    if kind == TENSOR:
        return tensors[body]
    if kind == DICT:
        return {key: unflatten(tensors, item) for key, item in body}
    items = [unflatten(tensors, item) for item in body]
    return items if kind == LIST else tuple(items)


def _key(key: Any, path: str) -> str | int | float:
    if isinstance(key, str | int | float) and not isinstance(key, bool):
        return key
    raise TypeError(f"state at {path or '/'} has the key {key!r}: keys must be text or numbers")


def storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU that share no memory, as safetensors wants them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def same_bits(first: Any, second: Any) -> bool:
    """True when two states have the same structure and types and every number the same bits: nan is nan, 0 not -0."""
    (a, meta_a), (b, meta_b) = flatten(first), flatten(second)
    return json.dumps(meta_a) == json.dumps(meta_b) and all(_same_tensor(a[name], b[name]) for name in a)


def _same_tensor(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(t.cpu().contiguous().flatten().view(torch.uint8) for t in (a, b)))
