"""The Gram matrix by halves: torch's numbers, exactly symmetric, and torch itself wherever the halves do not fit."""

import pytest
import torch

from forgelib.core.cpp import CannotBuild
from forgelib.optim import gram
from forgelib.optim.gram import add_to_diagonal, gram_matrix
from forgelib.optim.newton_schulz import orthogonalize

halves = pytest.mark.skipif(gram.library()[0] is None, reason=f"gram.cpp is not in use: {gram.library()[1]}")
SHAPES = [(4, 64, 64), (1, 256, 256), (4, 128, 384), (3, 96, 32), (2, 256, 768), (5, 64, 1056), (1, 288, 512)]


def stack(shape: tuple, seed: int = 0) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (x * x.abs()).to(torch.bfloat16)  # some are large, many are small


@halves
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_layouts_give_the_true_products_and_are_exactly_symmetric(shape, threads):
    torch.set_num_threads(threads)
    x = stack(shape)
    assert gram.library()[0] is not None and gram._fits(x)
    true = x.double() @ x.double().mT
    size = x.double().abs() @ x.double().abs().mT
    for layout in (x, x.mT.contiguous().mT):
        found = gram_matrix(layout)
        assert float(((found.double() - true).abs() / size).max()) < 2**-8, "one rounding to eight bits"
        assert torch.equal(found, found.mT)
        for value in (-1.675, 0.6386):  # rounded to the matrix's type, as torch's add_ has it
            assert torch.equal(gram_matrix(layout, value), add_to_diagonal(found.clone(), value))


@halves
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_number_in_a_thousand_at_most_is_rounded_otherwise_than_by_torch(shape):
    """Both round sums of float32; the order of the sums decides where one lies close to the middle."""
    x = stack(shape)
    tall = x.mT.contiguous()
    for found, torchs in (
        (gram_matrix(x), torch.bmm(x, x.mT)),
        (gram_matrix(tall.mT), torch.bmm(tall.mT, tall)),
    ):
        assert float((found != torchs).float().mean()) < 1e-3


@halves
@pytest.mark.parametrize("shape", [(4, 128, 128), (4, 128, 384), (4, 384, 128)], ids=str)
def test_the_orthogonal_factor_differs_from_torchs_by_rounding_alone(shape, monkeypatch):
    x = stack(shape)
    with_halves = orthogonalize(x)
    monkeypatch.setattr(gram, "library", lambda: (None, "not here"))
    assert float((orthogonalize(x) - with_halves).abs().max()) < 0.01


@halves
def test_a_broken_matrix_does_not_harm_its_neighbours():
    torch.set_num_threads(2)
    x = stack((3, 64, 64))
    whole = gram_matrix(x)
    x[1, 5, 7] = float("nan")
    broken = gram_matrix(x)
    assert bool(broken[1, 5].isnan().all()) and not bool(broken[1, :5, :5].isnan().any())
    assert torch.equal(broken[0], whole[0]) and torch.equal(broken[2], whole[2])


@pytest.mark.parametrize(
    "x",
    [
        stack((2, 12, 256)),
        stack((2, 64, 100)),
        stack((2, 64, 64)).float(),
        stack((2, 64, 128))[..., ::2],
        stack((2, 32, 64)),
        torch.zeros(0, 64, 64, dtype=torch.bfloat16),
    ],
    ids=["few rows", "odd columns", "float32", "strided", "too small", "no matrix"],
)
def test_what_does_not_fit_is_torchs(x):
    assert torch.equal(gram_matrix(x), torch.bmm(x, x.mT))
    assert torch.equal(gram_matrix(x, 0.5), torch.bmm(x, x.mT) + 0.5 * torch.eye(x.shape[-2], dtype=x.dtype))


def test_without_a_compiler_torch_multiplies_and_the_reason_is_kept(monkeypatch):
    def fails(*args, **more):
        raise CannotBuild("no C++ compiler found")

    gram.library.cache_clear()
    try:
        monkeypatch.setattr(gram, "built", fails)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        x = stack((1, 64, 64))
        assert torch.equal(gram_matrix(x), torch.bmm(x, x.mT))
        assert "no C++ compiler" in gram.library()[1]
    finally:
        gram.library.cache_clear()
