"""Each technique against its formula, written anew in float64, on tensors of several pieces."""

import numpy as np
import pytest
import torch

from forgelib.core.rng import stream
from forgelib.merge import RECIPES, Genes, dare, dfs, linear, recipe, slerp, ties
from forgelib.merge.weights import PIECE

SIZES = {"model.embed.weight": (3, PIECE // 2 + 77), "model.layers.0.w": (500, 40), "model.layers.1.w": (33,)}


def draw(seed, around=None, step=1.0):
    g = torch.Generator().manual_seed(seed)
    return {n: step * torch.randn(s, generator=g) + (0 if around is None else around[n]) for n, s in SIZES.items()}


@pytest.fixture(scope="module")
def family():
    base = draw(0)
    return [draw(seed, base, 0.8) for seed in (1, 2, 3)], base


def wide(models, name):
    return [model[name].numpy().astype(np.float64) for model in models]


def assert_near(child, wanted, tolerance=2e-6):
    for name, tensor in child.items():
        assert np.abs(tensor.numpy() - wanted[name]).max() <= tolerance * np.abs(wanted[name]).max(), name


def test_linear(family):
    models, _ = family
    wanted = {n: np.average(wide(models, n), axis=0, weights=(1, 2, 4)) for n in SIZES}
    assert_near(linear(models, (1, 2, 4)), wanted)


def test_slerp(family):
    models, _ = family
    wanted = {}
    for name in SIZES:
        a, b = wide(models[:2], name)
        theta = np.arccos((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
        wanted[name] = (np.sin(0.7 * theta) * a + np.sin(0.3 * theta) * b) / np.sin(theta)
    assert_near(slerp(models[0], models[1], 0.3), wanted)


def test_dare(family):
    """The masks are the documented ones: words of 32 bits from SFC64, below p * 2^32 dropped, over the whole tensor."""
    models, base = family
    p, wanted = 0.9, {}
    for name, shape in SIZES.items():
        trunk = base[name].numpy().astype(np.float64)
        taus = np.stack(wide(models, name)) - trunk
        n = taus[0].size
        for i, tau in enumerate(taus):
            words = np.random.SFC64(stream(4, "dare", i, name)).random_raw(n // 2 + 1).view(np.int32)[:n]
            tau *= (words >= round(p * 2**32) - 2**31).reshape(shape)
        wanted[name] = trunk + 0.5 * taus.mean(0) / (1 - p)
    assert_near(dare(models, base, p, 4, scale=0.5), wanted)


def test_ties(family):
    models, base = family
    taus = np.stack([np.concatenate([(m[n] - base[n]).numpy().ravel() for n in SIZES]) for m in models])
    for tau in taus:
        order = np.argsort(np.abs(tau))
        tau[order[: tau.size - round(0.2 * tau.size)]] = 0
    taus = taus.astype(np.float64)
    agree = (np.sign(taus) == np.sign(taus.sum(0))) & (taus != 0)
    merged = (taus * agree).sum(0) / np.maximum(agree.sum(0), 1)
    wanted, start = {}, 0
    for name, shape in SIZES.items():
        size = int(np.prod(shape))
        wanted[name] = base[name].numpy() + 1.5 * merged[start : start + size].reshape(shape)
        start += size
    assert_near(ties(models, base, 0.2, 1.5), wanted)


def test_dfs(family):
    models, _ = family
    models = [{n: (i + 1) * t for n, t in model.items()} for i, model in enumerate(models)]
    wanted = {}
    for name in SIZES:
        tensors = wide(models, name)
        wanted[name] = np.average(tensors, axis=0, weights=[1 / t.var() for t in tensors])
    assert_near(dfs(models), wanted)


@pytest.mark.parametrize("bits", RECIPES)
def test_a_recipe_in_float64_is_the_same_child(bits, family):
    models, base = family
    genes = Genes(drop_rate=0.3, top_k=0.5)
    child, exact = recipe(bits).merge(models, base, genes), recipe(bits).in_float64(models, base, genes)
    for name, tensor in child.items():
        wanted = exact(name)
        assert wanted.dtype == torch.float64
        assert float((tensor - wanted).abs().max()) <= 3e-6 * float(wanted.abs().max()), name
