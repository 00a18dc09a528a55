"""Every use of chance has its own stream, and the state of all generators can be put back."""

import hashlib
import json
import random

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from forgelib.core.rng import rng_state, seed_everything, seeded, set_rng_state, stream
from forgelib.core.state import flatten, same_bits, storable, unflatten


def draws() -> list:
    """Something from every generator, with the normal variates that keep a second one back."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(3).tolist(),
        np.random.randn(),
        torch.rand(3).tolist(),
        torch.randn(1).item(),
        torch.nn.functional.dropout(torch.ones(32), 0.5).tolist(),
    ]


def test_a_stream_is_a_function_of_seed_and_names():
    assert stream(0, "batches", 1) == stream(0, "batches", 1)
    digest = hashlib.sha256(b"(0, 'batches', 1)").hexdigest()
    assert stream(0, "batches", 1) == int(digest[:16], 16) // 2, "another formula would change every published result"


def test_streams_do_not_meet():
    names = [(), ("a",), ("b",), ("a", "b"), ("ab",), ("b", "a"), ("a", 1), ("a", "1"), (1,), ("1",), (("a", "b"),)]
    seeds = [stream(seed, *name) for seed in (0, 1, 2**40, -1) for name in names]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_neighbouring_streams_are_uncorrelated():
    """Bits of the derived seeds, and the normal numbers drawn from them, for 400 neighbouring seeds and two names."""
    seeds = {name: [stream(seed, name) for seed in range(400)] for name in ("noise", "noisf")}
    bits = np.array([[seed >> bit & 1 for bit in range(63)] for seed in seeds["noise"]])
    assert abs(bits.mean() - 0.5) < 0.02
    assert np.abs(bits.mean(0) - 0.5).max() < 0.12
    drawn = {
        name: [float(torch.randn(1, generator=torch.Generator().manual_seed(s))) for s in seeds[name]] for name in seeds
    }
    first, second = np.array(drawn["noise"]), np.array(drawn["noisf"])
    limit = 4 / np.sqrt(400)
    assert abs(np.corrcoef(first, second)[0, 1]) < limit
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < limit


def test_the_same_seed_gives_the_same_numbers_everywhere():
    seed_everything(5)
    first = draws()
    seed_everything(5)
    assert draws() == first
    seed_everything(6)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_any_stream_is_a_seed_for_every_generator():
    for seed in (0, 2**32, stream(0, "x"), 2**63 - 1):
        seed_everything(seed)


def test_the_state_goes_through_files_and_back(tmp_path):
    seed_everything(1)
    for warm_up in range(4):  # with and without a normal number kept back
        random.gauss(0, 1)
        np.random.randn(warm_up)
        state = rng_state()
        expected = draws(), draws()
        tensors, meta = flatten(state)
        save_file(storable(tensors), tmp_path / "rng.safetensors")
        read = unflatten(load_file(tmp_path / "rng.safetensors"), json.loads(json.dumps(meta)))
        seed_everything(99)
        set_rng_state(read)
        assert same_bits(rng_state(), state)
        assert (draws(), draws()) == expected


def test_inside_a_seed_draws_are_its_own_and_outside_nothing_was_drawn():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with seeded(8, torch.device("cpu")):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    with seeded(8, torch.device("cpu")):
        assert torch.equal(torch.rand(4), inside)
