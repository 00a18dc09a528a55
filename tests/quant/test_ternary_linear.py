"""A layer that trains with three values becomes a packed one that computes the same in a sixteenth of the memory."""

import copy
import math
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrizations

from forgelib.quant import PackedTernaryLinear, Rounding, SharedInput, TernaryLinear, round_activations, ternarize


def layer(inputs: int = 96, outputs: int = 72, bias: bool = True, **rounding) -> TernaryLinear:
    return TernaryLinear.from_linear(nn.Linear(inputs, outputs, bias=bias), Rounding(**rounding))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rounding", [{}, {"per_row": True}, {"threshold": 0.3}], ids=str)
def test_the_packed_layer_computes_what_the_trained_one_did(rounding, bias):
    trained = layer(bias=bias, **rounding)
    packed, x = trained.pack(), torch.randn(2, 7, 96)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), trained(x), rtol=1e-5, atol=1e-5)
    signs, scales = ternarize(trained.weight, trained.rounding)
    assert torch.equal(packed.weight, signs * scales[:, None])
    assert packed.sparsity() == trained.sparsity() == float((signs == 0).float().mean()) > 0


def test_a_layer_without_rounding_is_the_linear_layer_and_shares_its_parameters():
    linear = nn.Linear(8, 4)
    ternary = TernaryLinear.from_linear(linear)
    ternary.share = 0.0
    x = torch.randn(3, 8)
    assert torch.equal(ternary(x), linear(x))
    assert ternary.weight is linear.weight and ternary.bias is linear.bias


def test_gradients_are_those_of_the_rounded_layer_taken_straight_through():
    trained, x = layer(12, 5), torch.randn(6, 12, requires_grad=True)
    trained(x).square().sum().backward()
    signs, scales = ternarize(trained.weight)
    rounded = (signs * scales[:, None]).requires_grad_()
    x_rounded = round_activations(x).detach().requires_grad_()
    F.linear(x_rounded, rounded, trained.bias).square().sum().backward()
    torch.testing.assert_close(trained.weight.grad, rounded.grad)
    torch.testing.assert_close(x.grad, x_rounded.grad)


def test_training_the_rounded_layer_fits_a_ternary_target():
    torch.manual_seed(0)
    target = torch.randint(-1, 2, (8, 16)).float()
    trained = layer(16, 8, bias=False)
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.02)
    for _ in range(300):
        x = torch.randn(64, 16)
        loss = (trained(x) - F.linear(x, target)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05 * float(F.linear(x, target).square().mean())
    assert torch.equal(ternarize(trained.weight)[0].float(), target)


def test_memory_is_a_sixteenth_of_float32():
    trained = layer(512, 1024, bias=False)
    packed = trained.pack()
    scales = 4 * 1024
    assert packed.resident_bytes() == trained.weight.nbytes / 16 + scales
    packed(torch.randn(3, 512))
    assert packed.resident_bytes() == sum(t.nbytes for t in packed.state_dict().values())
    assert not list(packed.parameters()), "no full-precision weight stays behind"


def test_a_packed_layer_refuses_a_gradient_instead_of_dropping_it():
    packed = layer().pack()
    with pytest.raises(RuntimeError, match="no gradient"):
        packed(torch.randn(2, 96, requires_grad=True))
    with torch.no_grad():
        assert not packed(torch.randn(2, 96, requires_grad=True)).requires_grad


def test_a_packed_layer_survives_copies_moves_and_loading():
    packed, other, x = layer().pack(), layer().pack(), torch.randn(2, 96)
    y = packed(x)
    for copied in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(copied(x), y)
    assert not torch.equal(other(x), y)
    other.load_state_dict(packed.state_dict())
    assert torch.equal(other(x), y)
    assert torch.equal(packed.to(torch.float32)(x), y)
    rounded = copy.deepcopy(packed).to(torch.float16)
    torch.testing.assert_close(rounded(x), y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name, damage, told",
    [
        ("codes", lambda t: t.fill_(255), "the code 3"),
        ("codes", lambda t: t[:, :-1], "codes of 72 x 96"),
        ("scales", lambda t: t.fill_(math.nan), "NaN or infinity"),
        ("scales", lambda t: t.neg_(), "below 0"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(name, damage, told):
    packed, x = layer().pack(), torch.randn(2, 96)
    y, state = packed(x), layer().pack().state_dict()
    with pytest.raises(RuntimeError, match=told):
        packed.load_state_dict(state | {name: damage(state[name].clone())})
    assert torch.equal(packed(x), y)


def test_a_weight_that_is_no_parameter_and_a_forward_of_its_own_are_refused():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(ValueError, match="Doubled is no plain"):
        TernaryLinear.from_linear(Doubled(8, 8))
    for normed in (parametrizations.weight_norm(nn.Linear(8, 8)), nn.utils.spectral_norm(nn.Linear(8, 8))):
        with pytest.raises(ValueError, match="remove the norm first"):
            TernaryLinear.from_linear(normed)
    assert TernaryLinear.from_linear(NonDynamicallyQuantizableLinear(8, 8)).in_features == 8, "it computes the same"


@pytest.mark.parametrize("shared", [False, True])
def test_a_buffer_that_is_assigned_counts_from_the_next_call(shared):
    packed, other, x = layer().pack(), layer(per_row=True).pack(), torch.randn(2, 96)
    if shared:
        SharedInput([other, packed])
    before = packed(x)
    for name in ("codes", "scales", "bias"):
        if shared:
            other(x)
        setattr(packed, name, getattr(other, name).clone())
    parts = packed.codes, packed.scales, packed.bias
    after = packed(x)
    assert torch.equal(after, PackedTernaryLinear(*parts, 72, 96)(x)) and not torch.equal(after, before)
    packed.bias = None
    torch.testing.assert_close(packed(x), after - other.bias)
    packed.scales = torch.ones(3)
    with pytest.raises(ValueError, match="72"):
        packed(x)


def test_layers_that_were_moved_away_refuse_x_of_the_cpu():
    alone, q, k, x = *(layer().pack() for _ in range(3)), torch.randn(2, 96)
    SharedInput([q, k])
    for packed in (alone, q, k):
        packed(x)
    for packed in (alone, q, k):
        packed.to("meta")
    for packed in (alone, q, k):
        with pytest.raises(RuntimeError, match="x is on cpu, the layer on meta"):
            packed(x)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"codes": torch.zeros(1, 2, 64, dtype=torch.uint8)}, "codes of 72 x 96"),
        ({"scales": torch.ones(71)}, "scales of 72"),
        ({"scales": torch.full((72,), float("nan"))}, "NaN"),
        ({"scales": torch.full((72,), float("inf"))}, "NaN"),
        ({"scales": torch.full((72,), -1.0)}, "below 0"),
        ({"bias": torch.full((72,), float("nan"))}, "NaN"),
        ({"bias": torch.ones(72, dtype=torch.float64)}, "float32"),
    ],
)
def test_a_damaged_layer_is_refused(change, message):
    packed = layer().pack()
    parts = {"codes": packed.codes, "scales": packed.scales, "bias": packed.bias, **change}
    with pytest.raises(ValueError, match=message):
        PackedTernaryLinear(**parts, out_features=72, in_features=96)


def test_layers_that_share_their_input_give_what_each_gives_alone():
    alone = [layer(32, n).pack() for n in (16, 80, 7)]
    together = copy.deepcopy(alone)
    SharedInput(together)
    for _ in range(2):
        x = torch.randn(2, 3, 32)
        for one, other in zip(alone, together, strict=True):
            assert torch.equal(one(x), other(x))
    with pytest.raises(ValueError, match="cannot share"):
        SharedInput(alone[:1])


def test_outputs_that_wait_are_never_given_for_another_input():
    """A second tensor, the same one changed in place, the same layer asked twice, inference mode, new weights."""
    q, k = layer(32, 16).pack(), layer(32, 8).pack()
    alone = copy.deepcopy(k)
    shared = SharedInput([q, k])
    x, other = torch.randn(2, 32), torch.randn(2, 32)
    q(x)
    assert torch.equal(k(other), alone(other))
    q(x)
    x.add_(1)
    assert torch.equal(k(x), alone(x))
    assert torch.equal(k(x), alone(x)) and torch.equal(k(x), alone(x))
    with torch.inference_mode():
        y = torch.randn(2, 32)
        q(y)
        y.mul_(2)
        assert torch.equal(k(y), alone(y))
    q(x)
    k.load_state_dict(layer(32, 8).pack().state_dict())
    assert not torch.equal(k(x), alone(x))
    last = torch.randn(2, 32)
    q(last)
    k(last)
    assert shared._waiting is None, "nothing is kept once all were asked"


def test_threads_that_share_an_input_each_get_their_output():
    """Many threads ask the same layers for the same tensor: each gets what the layer gives alone, and never None."""
    alone = [layer(32, n).pack() for n in (16, 8, 7)]
    together, x = copy.deepcopy(alone), torch.randn(2, 32)
    SharedInput(together)
    expected = [one(x) for one in alone]

    def ask(_: int) -> bool:
        outputs = [one(x) for _ in range(2000) for one in together]
        return all(y is not None and torch.equal(y, expected[i % 3]) for i, y in enumerate(outputs))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, range(4)))
    finally:
        sys.setswitchinterval(interval)
