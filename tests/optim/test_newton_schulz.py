"""The orthogonal factor: singular values in the documented band, whatever the shape."""

import pytest
import torch

from forgelib.optim.newton_schulz import BAND, EVERY_STEP, ON_THE_GRAM_MATRIX, iterate, orthogonalize

SHAPES = {"square": (48, 48), "wide": (32, 96), "tall": (96, 32), "nearly square": (40, 48), "two rows": (2, 64)}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def random(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_singular_values(shape, values, seed=0):
    """U diag(values) V^T [rows, columns] in float64, U and V random orthogonal."""
    u = torch.linalg.qr(random((shape[0], len(values)), seed, torch.float64))[0]
    v = torch.linalg.qr(random((shape[1], len(values)), seed + 1, torch.float64))[0]
    return u * values @ v.T


def spread(shape):
    """Singular values over two decades, the smallest 0.005 of the Frobenius norm."""
    values = torch.logspace(0, -2, min(shape), dtype=torch.float64)
    return values.clamp_min(0.0051 * float(values.norm()))


@shapes
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_end_in_the_band(shape, dtype, scale):
    for seed in range(3):
        g = scale * with_singular_values(shape, spread(shape), seed).to(torch.float32)
        values = torch.linalg.svdvals(orthogonalize(g[None], dtype).double())
        assert BAND[0] <= float(values.min()) and float(values.max()) <= BAND[1]


@shapes
def test_each_singular_value_goes_through_the_published_polynomial_five_times(shape):
    """Float64 reference: U f(S) V^T with f the quintic of Jordan et al., from the Frobenius norm on."""
    g, (a, b, c) = with_singular_values(shape, spread(shape)), (3.4445, -4.7750, 2.0315)
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    assert float((orthogonalize(g[None])[0] - u * s @ vt).abs().max()) < 1e-9
    assert float((orthogonalize(g.float()[None], torch.float32)[0] - u * s @ vt).abs().max()) < 2e-3


@shapes
def test_a_stack_gives_what_each_matrix_gives_alone(shape):
    stack = torch.stack([random(shape, seed) for seed in range(4)])
    alone = torch.cat([orthogonalize(one[None], torch.float32) for one in stack])
    assert torch.allclose(orthogonalize(stack, torch.float32), alone, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deficient_rank_stays_bounded_and_zero_stays_zero(dtype):
    low = with_singular_values((32, 48), torch.ones(4, dtype=torch.float64)).float()
    values = torch.linalg.svdvals(orthogonalize(low[None], dtype).double())[0]
    assert BAND[0] <= float(values[3]) and float(values[0]) <= BAND[1]
    if dtype == torch.float64:  # below that, rounding fills the empty directions and is lifted with the rest
        assert float(values[4]) < 1e-3
    assert torch.equal(orthogonalize(torch.zeros(1, 8, 24), dtype), torch.zeros(1, 8, 24))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 2e-3)])
def test_on_the_gram_matrix_the_result_is_the_same(dtype, tolerance):
    x = with_singular_values((32, 96), spread((32, 96))).to(dtype)[None].repeat(3, 1, 1)
    x = x / torch.linalg.matrix_norm(x, keepdim=True)
    assert sum(ON_THE_GRAM_MATRIX) == sum(EVERY_STEP) == 5
    assert float((iterate(x, EVERY_STEP) - iterate(x, ON_THE_GRAM_MATRIX)).abs().max()) < tolerance


@pytest.mark.parametrize("shape", [(2, 64), (3, 48), (48, 3), (16, 64), (48, 96), (64, 64)], ids=str)
@pytest.mark.parametrize("rest", [1.0, 0.3, 0.1], ids=lambda rest: f"the rest below {rest}")
def test_one_leading_singular_value_never_leaves_the_band(shape, rest):
    """What gradients look like when a model has just found something: bfloat16 must not lift the leading value."""
    generator, short = torch.Generator().manual_seed(0), min(shape)
    values = rest * 10 ** (-2 * torch.rand(300, short, generator=generator))
    values[:, 0] = 1.0
    u = torch.linalg.qr(torch.randn(300, shape[0], short, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(300, shape[1], short, generator=generator))[0]
    stack = (u * values[:, None] @ v.mT).to(torch.bfloat16)
    assert float(torch.linalg.svdvals(orthogonalize(stack, torch.bfloat16).float()).max()) <= BAND[1]


def test_a_broken_matrix_does_not_harm_its_neighbours():
    stack = torch.stack([random((16, 16), seed) for seed in range(3)])
    whole = orthogonalize(stack)
    stack[1, 0, 0] = float("nan")
    broken = orthogonalize(stack)
    assert bool(broken[1].isnan().all())
    assert torch.equal(broken[0], whole[0]) and torch.equal(broken[2], whole[2])
