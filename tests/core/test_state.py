"""Nested state goes to tensors and JSON and comes back the same, bit for bit; what cannot is refused by name."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from forgelib.core.state import flatten, same_bits, storable, unflatten

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
TEXTS = ("", "a", "a/b", "/", "1", "tensor", "dict", "list", "tuple", "ü", "a.b", "\n")


def random_nest(rng: random.Random, depth: int = 4) -> object:
    """Anything that `flatten` says it understands."""
    kind = rng.choice(["tensor", "dict", "list", "tuple"]) if depth else "leaf"
    size = rng.randrange(4)
    if kind == "tensor":
        shape = [rng.randrange(3) for _ in range(rng.randrange(3))]
        return (torch.randn(shape) * 10).to(rng.choice(DTYPES))
    if kind == "dict":
        keys = [rng.choice([rng.choice(TEXTS), rng.randrange(-2, 3), rng.random()]) for _ in range(size)]
        return {key: random_nest(rng, depth - 1) for key in keys}
    if kind == "list":
        return [random_nest(rng, depth - 1) for _ in range(size)]
    if kind == "tuple":
        return tuple(random_nest(rng, depth - 1) for _ in range(size))
    return rng.choice([None, True, False, 0, 1, -(2**70), 0.1, 1e-300, float("inf"), "", "text", rng.random()])


def through_files(value: object, folder) -> object:
    tensors, meta = flatten(value)
    save_file(storable(tensors), folder / "tensors.safetensors")
    return unflatten(load_file(folder / "tensors.safetensors"), json.loads(json.dumps(meta)))


def identical(a: object, b: object) -> bool:
    """An oracle that shares no code with the room."""
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return same and a.contiguous().flatten().view(torch.uint8).equal(b.contiguous().flatten().view(torch.uint8))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return [repr(k) for k in a] == [repr(k) for k in b] and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return repr(a) == repr(b)


def test_random_nests_come_back_identical(tmp_path):
    rng = random.Random(0)
    torch.manual_seed(0)
    for _ in range(150):
        value = random_nest(rng)
        back = through_files(value, tmp_path)
        assert identical(value, back), value
        assert same_bits(value, back)


def test_names_that_look_alike_do_not_overwrite_each_other(tmp_path):
    one, two = torch.tensor([1.0]), torch.tensor([2.0])
    for value in ({"a": {"b": one}, "a/b": two}, {1: one, "1": two}, {"": {"": one}, "/": two}, {1: one, 1.5: two}):
        assert identical(value, through_files(value, tmp_path))


def test_an_optimizer_comes_back_identical(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    back = through_files(state, tmp_path)
    assert same_bits(dict(state["model"]), back["model"]) and identical(state["optimizer"], back["optimizer"])


def test_tied_sliced_and_transposed_tensors_are_stored_apart(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    value = {"whole": base, "same": base, "slice": base[1:, ::2], "turned": base.T, "row": base[0].requires_grad_()}
    assert identical({k: v.detach() for k, v in value.items()}, through_files(value, tmp_path))


@pytest.mark.parametrize(
    "value",
    [np.zeros(2), {1, 2}, b"bytes", object(), 1j, np.int64(3), {("a", "b"): 1}, {None: 1}, {True: 1}, range(3)],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_is_refused_by_its_place(value):
    with pytest.raises(TypeError, match="here/0"):
        flatten({"here": [value]})


def test_same_bits_means_bits():
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert same_bits(nan, nan.clone()) and same_bits({"a": float("nan")}, {"a": float("nan")})
    assert not same_bits(zero, -zero), "0.0 and -0.0 are equal, not the same bits"
    assert not same_bits(zero, zero.int()), "the same bytes, but of another kind of number"
    assert not same_bits(zero, zero.double()) and not same_bits(zero, torch.zeros(1, 1))
    assert not same_bits({"a": 1}, {"a": 1.0}) and not same_bits({"a": 1}, {"a": True})
    assert not same_bits([zero], (zero,)) and not same_bits([zero], [zero, zero])
    assert not same_bits(torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]))
