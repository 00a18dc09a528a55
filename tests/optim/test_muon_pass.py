"""The element-wise half of a Muon step in one pass: torch's bits, and torch itself wherever the pass does not fit."""

import pytest
import torch

from forgelib.core.cpp import CannotBuild
from forgelib.optim import muon_pass

native, why_not = muon_pass.native()
in_use = pytest.mark.skipif(native is None, reason=f"muon_pass.cpp is not in use: {why_not}")
#: alpha, lambda and momentum
SETTINGS = {
    "filter": (0.98, 0.3, 0.95),
    "no filter": (0.98, 0.0, 0.95),
    "short memories": (0.3, 2.0, 0.4),  # torch.lerp goes from the other end
}


def matrices(shape: tuple, seed: int, size: float = 1.0) -> list[torch.Tensor]:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return [size * one for one in drawn * drawn.abs()]  # some are large, many are small


def run(shape: tuple, settings: tuple, kind: torch.dtype = torch.bfloat16, layout=torch.Tensor.contiguous) -> list:
    """Both passes over one drawing: the stack, then what moved (slow parts, momenta, weights), then the gradients."""
    gradients = [layout(one) for one in matrices(shape, 1, 1e-3)]
    slow, momenta, weights = matrices(shape, 2, 1e-3), matrices(shape, 3, 1e-3), matrices(shape, 4)
    stack = torch.empty(shape, dtype=kind)
    muon_pass.collect(stack, gradients, slow, momenta, *settings)
    muon_pass.apply(weights, stack, 1 - 0.02 * 0.05, -0.013)
    return [stack, *slow, *momenta, *weights, *gradients]


def by_torch(monkeypatch, *arguments) -> list:
    with monkeypatch.context() as patch:
        patch.setattr(muon_pass, "native", lambda: (None, "not here"))
        return run(*arguments)


def test_both_passes_are_the_formulas():
    shape = (3, 8, 16)
    g, h, b, w = (torch.stack(matrices(shape, seed)).double() for seed in (1, 2, 3, 4))
    slow, momenta, weights = ([one.float() for one in each] for each in (h, b, w))
    stack = torch.empty(shape, dtype=torch.bfloat16)
    muon_pass.collect(stack, [one.float() for one in g], slow, momenta, 0.98, 0.3, 0.95)
    h = 0.98 * h + 0.02 * g
    b = 0.95 * b + 0.05 * (g + 0.3 * h)
    assert torch.allclose(torch.stack(slow).double(), h, atol=1e-6)
    assert torch.allclose(torch.stack(momenta).double(), b, atol=1e-6)
    assert torch.allclose(stack.double(), 0.05 * (g + 0.3 * h) + 0.95 * b, rtol=2**-8, atol=1e-6)
    muon_pass.apply(weights, stack, 0.9, -0.1)
    assert torch.allclose(torch.stack(weights).double(), 0.9 * w - 0.1 * stack.double(), atol=1e-6)


@in_use
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("shape", [(4, 256, 256), (1, 16, 1), (3, 12, 256), (5, 144, 128)], ids=str)
def test_one_pass_has_torchs_bits(shape, settings, threads, monkeypatch):
    torch.set_num_threads(threads)
    called = []
    monkeypatch.setattr(muon_pass, "native", lambda: called.append(1) or (native, ""))
    for found, expected in zip(run(shape, settings), by_torch(monkeypatch, shape, settings), strict=True):
        assert torch.equal(found, expected)
    assert len(called) == 2, "both passes went through the library"


@in_use
def test_nan_and_infinity_stay_where_they_are():
    shape = (2, 16, 16)
    gradients, slow, momenta = (matrices(shape, seed) for seed in (1, 2, 3))
    gradients[0][3, 5], gradients[1][0, 0] = float("nan"), float("inf")
    stack = torch.empty(shape, dtype=torch.bfloat16)
    muon_pass.collect(stack, gradients, slow, momenta, 0.98, 0.3, 0.95)
    assert stack.isfinite().logical_not().nonzero().tolist() == [[0, 3, 5], [1, 0, 0]]


@pytest.mark.parametrize(
    ("shape", "kind", "layout"),
    [
        ((2, 16, 16), torch.float32, torch.Tensor.contiguous),
        ((2, 5, 5), torch.bfloat16, torch.Tensor.contiguous),
        ((2, 16, 16), torch.bfloat16, lambda one: one.mT.contiguous().mT),
    ],
    ids=["float32 stack", "odd size", "strided gradient"],
)
def test_what_does_not_fit_is_torchs(shape, kind, layout, monkeypatch):
    monkeypatch.setattr(muon_pass, "native", lambda: pytest.fail("the pass does not fit"))
    if layout is not torch.Tensor.contiguous:  # the second pass sees no gradient
        monkeypatch.setattr(muon_pass, "apply", lambda *arguments: None)
    run(shape, SETTINGS["filter"], kind, layout)


def test_without_a_compiler_torch_does_it_and_the_reason_is_kept(monkeypatch):
    def fails(*args, **more):
        raise CannotBuild("no C++ compiler found")

    muon_pass.native.cache_clear()
    try:
        monkeypatch.setattr(muon_pass, "built", fails)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
        found = run((2, 16, 16), SETTINGS["filter"])
        assert "no C++ compiler" in muon_pass.native()[1]
        assert all(
            torch.equal(a, b)
            for a, b in zip(found, by_torch(monkeypatch, (2, 16, 16), SETTINGS["filter"]), strict=True)
        )
    finally:
        muon_pass.native.cache_clear()
