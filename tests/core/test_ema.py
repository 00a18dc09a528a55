"""The moving average of the weights is the recursion it says, and comes back exactly from a checkpoint."""

import pytest
import torch
from torch import nn

from forgelib.core.ema import WeightAverage
from forgelib.core.state import same_bits


def moving(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.98, 0.999])
def test_it_is_the_recursion_in_float64(decay):
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    average = WeightAverage(model, decay)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for t in range(1, 101):
        moving(model)
        average.update(model)
        d = min(decay, (1 + t) / (10 + t))
        expected = {name: d * expected[name] + (1 - d) * value.double() for name, value in model.state_dict().items()}
    average.copy_to(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=2e-5)


def test_it_leaves_the_model_alone_and_does_not_follow_it_by_reference():
    model = nn.Linear(2, 2)
    average = WeightAverage(model)
    before = model.weight.clone()
    average.update(model)
    assert torch.equal(model.weight, before)
    kept = average.average["weight"].clone()
    moving(model)
    assert torch.equal(average.average["weight"], kept)


def test_counts_are_copied_not_averaged():
    model = nn.BatchNorm1d(3)
    average = WeightAverage(model, 0.9)
    for n in range(5):
        model(torch.randn(4, 3))
        average.update(model)
        assert average.average["num_batches_tracked"] == n + 1


def test_from_its_state_it_goes_on_bit_for_bit():
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    whole = WeightAverage(model, 0.9)
    for _ in range(5):
        moving(model)
        whole.update(model)
    continued = WeightAverage(nn.Linear(3, 3), 0.9)
    continued.load_state_dict(whole.state_dict())
    for _ in range(5):
        moving(model)
        whole.update(model)
        continued.update(model)
    assert same_bits(whole.state_dict(), continued.state_dict())


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="decay"):
        WeightAverage(nn.Linear(1, 1), decay)


def test_applied_for_a_while_the_weights_come_back_bit_for_bit():
    model = nn.Linear(3, 2)
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        model.weight += 1.0
    average.update(model)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="in between"), average.applied(model):
        assert torch.equal(model.weight, average.average["weight"]) and not torch.equal(model.weight, own["weight"])
        raise RuntimeError("in between")
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())
