"""Rounding to three values: what the formulas say, gradients straight through, and nothing that is no number."""

import pytest
import torch

from forgelib.quant import Rounding, round_activations, round_tokens, round_weight, ternarize


def test_absmean_is_the_papers_formula():
    weight = torch.randn(7, 11, dtype=torch.float64).float()
    signs, scales = ternarize(weight)
    gamma = weight.abs().mean()
    assert torch.equal(signs.float(), (weight / gamma).round().clamp(-1, 1))
    assert torch.equal(scales, gamma.expand(7))


def test_a_row_has_its_own_scale_when_asked():
    weight = torch.randn(3, 50) * torch.tensor([[0.01], [1.0], [100.0]])
    signs, scales = ternarize(weight, Rounding(per_row=True))
    torch.testing.assert_close(scales, weight.abs().mean(dim=1))
    assert bool((signs.abs().float().mean(dim=1) > 0.5).all()), "a small row is as dense as a large one"
    assert float(ternarize(weight)[0][0].abs().sum()) == 0, "with one scale for all, it vanishes"


@pytest.mark.parametrize("per_row", [False, True])
def test_the_threshold_zeroes_what_is_below_and_its_scale_leaves_the_least_error(per_row):
    weight = torch.randn(9, 300)
    signs, scales = ternarize(weight, Rounding(per_row=per_row, threshold=0.5))
    mean = weight.abs().mean(dim=1, keepdim=True) if per_row else weight.abs().mean()
    assert torch.equal(signs == 0, weight.abs() < 0.5 * mean)

    def error(factor):
        return float((weight - factor * scales[:, None] * signs).square().sum())

    assert error(1.0) < min(error(0.99), error(1.01))


def test_a_row_of_zeros_stays_zero():
    weight = torch.randn(4, 8)
    weight[2] = 0
    for rounding in (Rounding(), Rounding(per_row=True), Rounding(True, 0.2), Rounding(False, 0.0)):
        signs, scales = ternarize(weight, rounding)
        assert not signs[2].any() and bool(torch.isfinite(scales).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused(bad):
    weight = torch.randn(4, 8)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        ternarize(weight)


def test_other_shapes_and_thresholds_are_refused():
    with pytest.raises(ValueError, match=r"\[outputs, inputs\]"):
        ternarize(torch.randn(3))
    with pytest.raises(ValueError, match="threshold"):
        Rounding(threshold=-0.1)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_gradients_go_straight_through(share):
    """The rounded tensor's gradient is the gradient of the tensor itself, for weights and activations."""
    for rounded in (lambda t: round_weight(t, Rounding(), share), lambda t: round_activations(t, share)):
        t = torch.randn(5, 8, requires_grad=True)
        coming = torch.randn(5, 8)
        result = rounded(t)
        assert not torch.equal(result, t)
        result.backward(coming)
        assert torch.equal(t.grad, coming)


def test_the_warm_up_goes_from_the_weight_to_its_rounding():
    weight = torch.randn(5, 8)
    signs, scales = ternarize(weight)
    ternary = signs * scales[:, None]
    assert torch.equal(round_weight(weight, Rounding(), 0.0), weight)
    assert torch.equal(round_weight(weight, Rounding(), 1.0), ternary)
    torch.testing.assert_close(round_weight(weight, Rounding(), 0.5), (weight + ternary) / 2)


def test_a_token_is_rounded_by_its_own_largest_value():
    x = torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0], [-3e20, 1e20, 0.0]])
    values, units = round_tokens(x)
    assert values.tolist() == [[64, -127, 32], [0, 0, 0], [-127, 42, 0]]
    torch.testing.assert_close(values * units, round_activations(x))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_token_that_is_no_number_says_so_and_spoils_no_other(bad):
    x = torch.randn(3, 8)
    x[1, 4] = bad
    values, units = round_tokens(x)
    assert units.isnan().flatten().tolist() == [False, True, False]
    assert not values[1].any()
    assert round_activations(x).isnan().all(dim=1).tolist() == [False, True, False]
