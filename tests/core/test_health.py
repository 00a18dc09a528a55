"""NaN, divergence and plateaus are told apart and told with their place."""

import json
import math
import random

import pytest
import torch
from torch import nn

from forgelib.core.health import DivergedError, LossMonitor, NonFiniteError, first_nonfinite


class Net(nn.Module):
    """Two layers in a block, a buffer, and a tuple as an inner output."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, ids: torch.Tensor) -> dict:
        hidden = self.block(self.embed(ids) * self.scale)
        return {"logits": self.head(hidden), "parts": (hidden, None)}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


IDS = torch.tensor([[0, 1, 2]])


def test_a_sound_model_has_nothing(net):
    net(IDS)["logits"].sum().backward()
    assert first_nonfinite(net, lambda: net(IDS)) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["embed.weight", "block.2.bias", "head.weight"])
def test_a_broken_weight_is_named(net, name, value):
    with torch.no_grad():
        net.get_parameter(name).view(-1)[-1] = value
    assert first_nonfinite(net, lambda: net(IDS)) == f"the weight {name}"


def test_a_broken_buffer_is_named(net):
    net.scale.fill_(math.nan)
    assert first_nonfinite(net, lambda: net(IDS)) == "the buffer scale"


@pytest.mark.parametrize("name", ["embed", "block.0", "block.1", "block.2", "head"])
def test_the_first_layer_that_overflows_is_named(net, name):
    """Every layer after it is broken as well; the first is the one to look at."""
    layer = net.get_submodule(name)
    layer.register_forward_hook(lambda module, inputs, output: output * math.inf)
    found = first_nonfinite(net, lambda: net(IDS))
    assert found == f"the output of layer {name} ({type(layer).__name__})"


def test_a_broken_batch_is_told_from_a_broken_layer():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    rows = torch.tensor([[1.0, math.nan, 0.0]])
    assert first_nonfinite(model, lambda: model(rows)) == "the input of layer 0 (Linear)"


def test_a_broken_gradient_is_named(net):
    net(IDS)["logits"].sum().backward()
    net.block[0].weight.grad[0, 0] = math.nan
    assert first_nonfinite(net, lambda: net(IDS)) == "the gradient of block.0.weight"


def test_looking_changes_nothing_and_leaves_no_hooks(net):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ZeroDivisionError):
        first_nonfinite(net, lambda: 1 / 0)
    first_nonfinite(net, lambda: net(IDS))
    assert all(not module._forward_hooks for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert net.head.weight.grad is None


def test_the_error_says_step_place_and_what_to_do():
    error = NonFiniteError(17, "the output of layer head (Linear)")
    assert (error.step, error.where) == (17, "the output of layer head (Linear)")
    assert "step 17" in str(error) and "layer head" in str(error) and "learning rate" in str(error)


def feed(monitor: LossMonitor, losses) -> int | None:
    """The step at which it diverged, None when it did not."""
    for step, loss in enumerate(losses):
        try:
            monitor.update(step, loss)
        except DivergedError as error:
            assert f"step {step}" in str(error) and "learning rate" in str(error)
            return step
    return None


def falling(n: int = 100, noise: float = 0.3, seed: int = 0) -> list[float]:
    dice = random.Random(seed)
    return [1 + 3 * math.exp(-i / 20) + dice.uniform(-noise, noise) for i in range(n)]


def test_a_noisy_falling_loss_is_fine():
    for seed in range(20):
        assert feed(LossMonitor(), falling(500, seed=seed)) is None


def test_a_loss_that_runs_away_is_found_soon():
    step = feed(LossMonitor(), falling() + [1 * 1.1**i for i in range(100)])
    assert step is not None and 100 < step < 160


def test_a_single_spike_is_forgiven():
    assert feed(LossMonitor(), [*falling(), 60.0, *falling()[60:] * 3]) is None


def test_spikes_now_and_then_do_not_add_up():
    assert feed(LossMonitor(window=1, patience=5), [1.0, 1.0, 9.0, 9.0] * 20) is None
    assert feed(LossMonitor(window=1, patience=5), [1.0, 1.0, *[9.0] * 5]) == 6


def test_the_first_losses_set_no_mark():
    """Before one window has passed a lucky first batch is no best."""
    assert feed(LossMonitor(), [0.1, *[4.0] * 100]) is None


def test_a_loss_near_zero_may_triple():
    """From 0.001 to 0.003 is noise of a task that has been learned."""
    assert feed(LossMonitor(), [0.001] * 50 + [0.003] * 100) is None
    assert feed(LossMonitor(), [0.001] * 50 + [0.5] * 100) is not None


def test_a_negative_loss_may_wander_but_not_run_away():
    """A policy's objective has no floor at zero."""
    assert feed(LossMonitor(), [-1.0 + 0.2 * math.sin(i) for i in range(200)]) is None
    assert feed(LossMonitor(), [-1.0] * 50 + [0.5] * 100) is not None


def test_a_plateau_is_told_and_a_falling_loss_is_none():
    monitor = LossMonitor(plateau_steps=50)
    feed(monitor, falling(100, noise=0.0))
    assert not monitor.plateau
    feed(monitor, [falling(100, noise=0.0)[-1]] * 200)
    assert monitor.plateau
    monitor.restart()
    assert not monitor.plateau
    negative = LossMonitor(plateau_steps=50)
    feed(negative, [-1.0] * 120)
    assert negative.plateau


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_stops_at_once(loss):
    with pytest.raises(NonFiniteError, match=r"step 3.*the loss"):
        LossMonitor().update(3, loss)


def test_a_restart_is_as_good_as_new():
    monitor = LossMonitor()
    feed(monitor, falling())
    monitor.restart()
    assert monitor.state_dict() == LossMonitor().state_dict()


@pytest.mark.parametrize("steps_before", [1, 5, 20, 60, 10**6])
def test_from_its_state_it_goes_on_exactly(steps_before):
    """Cut just before the divergence, in the middle of its patience, long before, or at the very start."""
    losses = falling() + [1.1**i for i in range(80)]
    whole, first, second = LossMonitor(), LossMonitor(), LossMonitor()
    expected = feed(whole, losses)
    cut = max(0, expected - steps_before)
    feed(first, losses[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    with pytest.raises(DivergedError, match=f"step {expected}"):
        for step in range(cut, len(losses)):
            second.update(step, losses[step])
    assert second.state_dict() == whole.state_dict()
