"""Settings: the given presets as METHOD has them, and refusals that name field, value and range."""

import dataclasses

import pytest

from forgelib.optim import MuGrokConfig


@pytest.mark.parametrize(
    "name, muon_lr, adamw_lr, lam, tau, kl, decay",
    [
        ("cognate", 1e-3, None, 0.3, 30, 0.0, 0.05),
        ("baking", 1e-4, None, 0.2, 30, 0.0, 0.01),
        ("rl", 5e-4, None, 0.1, 25, 0.1, 0.0),
        ("bitnet", 1e-3, 1e-5, 2.0, 30, 0.0, 0.0),
    ],
)
def test_presets_are_the_given_ones(name, muon_lr, adamw_lr, lam, tau, kl, decay):
    c = MuGrokConfig.preset(name)
    assert (c.muon_lr, c.adamw_lr, c.grokfast_lambda, c.qk_clip_threshold) == (muon_lr, adamw_lr, lam, tau)
    assert (c.kl_coefficient, c.weight_decay, c.grokfast_alpha, c.muon_momentum) == (kl, decay, 0.98, 0.95)


def test_single_values_of_a_preset_can_be_replaced():
    changed = MuGrokConfig.preset("rl", muon_lr=0.02)
    assert changed == dataclasses.replace(MuGrokConfig.preset("rl"), muon_lr=0.02)


@pytest.mark.parametrize(
    "field, value, allowed",
    [
        ("muon_lr", 0.0, "above 0 and at most 1"),
        ("muon_lr", -1e-3, "above 0 and at most 1"),
        ("muon_lr", "1e-3", "above 0 and at most 1"),
        ("muon_lr", float("nan"), "above 0 and at most 1"),
        ("muon_lr", float("inf"), "above 0 and at most 1"),
        ("qk_clip_threshold", float("inf"), "or None for no clipping"),
        ("muon_lr", True, "above 0 and at most 1"),
        ("adamw_lr", 2.0, "above 0 and at most 1"),
        ("grokfast_lambda", -0.1, "from 0 to 100"),
        ("grokfast_alpha", 1.0, "at least 0 and below 1"),
        ("qk_clip_threshold", 0, "above 0"),
        ("kl_coefficient", -1, "at least 0"),
        ("weight_decay", -0.1, "from 0 to 10"),
        ("muon_momentum", 1.0, "at least 0 and below 1"),
        ("adamw_eps", 0.0, "above 0"),
        ("adamw_betas", (0.9, 1.0), "two numbers, each at least 0 and below 1"),
        ("adamw_betas", (0.9,), "two numbers, each at least 0 and below 1"),
        ("adamw_betas", 0.9, "two numbers, each at least 0 and below 1"),
        ("adamw_betas", ("a", "b"), "two numbers, each at least 0 and below 1"),
    ],
)
def test_a_bad_value_is_refused_with_field_value_and_range(field, value, allowed):
    with pytest.raises(ValueError) as refusal:
        MuGrokConfig(**{field: value})
    for part in (f"MuGrokConfig.{field}", repr(value), allowed):
        assert part in str(refusal.value)


def test_unknown_presets_and_fields_are_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match="no preset 'chef': choose one of cognate, baking, rl, bitnet"):
        MuGrokConfig.preset("chef")
    with pytest.raises(ValueError, match=r"no field 'lr'; it has .*muon_lr"):
        MuGrokConfig.preset("cognate", lr=1e-3)
