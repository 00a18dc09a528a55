"""The orthogonal factor: singular values in the documented band, whatever the shape."""

import pytest
import torch

from forgelib.optim.newton_schulz import BAND, orthogonalize

SHAPES = {"square": (48, 48), "wide": (32, 96), "tall": (96, 32), "nearly square": (40, 48), "a row": (2, 64)}


def matrix(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_end_in_the_band(shape, scale):
    for seed in range(5):
        values = torch.linalg.svdvals(orthogonalize(scale * matrix((1, *shape), seed)))
        assert BAND[0] <= float(values.min()) and float(values.max()) <= BAND[1]


@pytest.mark.parametrize("smallest", [0.05, 0.01])
def test_ill_conditioned_matrices_are_lifted_too(smallest):
    """Singular values from 1 down to `smallest` of the Frobenius norm's share all grow above 0.3."""
    u, _ = torch.linalg.qr(matrix((32, 32), 1))
    v, _ = torch.linalg.qr(matrix((64, 32), 2))
    spread = torch.logspace(0, torch.log10(torch.tensor(smallest)).item(), 32)
    values = torch.linalg.svdvals(orthogonalize((u * spread @ v.T)[None]))
    assert float(values.max()) <= BAND[1] and float(values.min()) >= 0.3


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_singular_vectors_are_those_of_the_input(shape):
    """U f(S) V^T: the result times the input's transpose stays symmetric, and its trace is positive."""
    g = matrix(shape, 3, torch.float64)
    product = orthogonalize(g[None])[0] @ g.T
    assert torch.allclose(product, product.T, atol=1e-8 * float(product.abs().max()))
    assert float(torch.linalg.eigvalsh(product).min()) > -1e-9


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_stack_gives_what_each_matrix_gives_alone(shape):
    stack = torch.stack([matrix(shape, seed) for seed in range(4)])
    together = orthogonalize(stack)
    alone = torch.cat([orthogonalize(one[None]) for one in stack])
    assert torch.allclose(together, alone, atol=1e-5)


def test_deficient_rank_stays_deficient_and_zero_stays_zero():
    low = matrix((32, 4), 1) @ matrix((4, 48), 2)
    values = torch.linalg.svdvals(orthogonalize(low[None]))[0]
    assert BAND[0] <= float(values[3]) and float(values[0]) <= BAND[1]
    assert float(values[4]) < 0.05
    assert torch.equal(orthogonalize(torch.zeros(1, 8, 24)), torch.zeros(1, 8, 24))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-9), (torch.float32, 2e-4)])
def test_on_the_gram_matrix_the_result_is_the_same(dtype, tolerance):
    from forgelib.optim import newton_schulz

    x = matrix((3, 32, 96), 5, dtype)
    x = x / torch.linalg.matrix_norm(x, keepdim=True)
    plain, gram = newton_schulz._on_the_matrix(x), newton_schulz._on_the_gram_matrix(x)
    assert float((plain - gram).abs().max()) < tolerance
