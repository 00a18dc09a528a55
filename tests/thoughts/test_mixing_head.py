"""The mixing head: nothing at step 0, gradient all the same, and nothing of its own where there is no thought."""

import pytest
import torch

from forgelib.thoughts import MixingHead


def parts(seed=0, width=16, n_thoughts=4):
    dice = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, width, generator=dice), torch.randn(2, 3, n_thoughts, width, generator=dice)


def moved(width=16):
    torch.manual_seed(0)
    head = MixingHead(width)
    torch.nn.init.normal_(head.last.weight)
    return head


def test_at_step_0_the_states_come_out_as_they_went_in_and_the_head_can_learn():
    torch.manual_seed(0)
    (states, ends), head = parts(), MixingHead(16)
    mixed = head(states, ends)
    assert torch.equal(mixed.states, states)
    mixed.states.square().sum().backward()
    assert float(head.last.weight.grad.abs().sum()) > 0
    assert torch.equal(head.last.weight, torch.zeros(16, 16)) and head.last.bias is None


def test_later_the_thoughts_change_the_states_and_receive_gradient():
    (states, ends), head = parts(), moved()
    ends.requires_grad_()
    mixed = head(states, ends)
    assert (mixed.states != states).all() and ((mixed.gate > 0) & (mixed.gate < 1)).all()
    torch.testing.assert_close(mixed.attention.sum(-1), torch.ones(2, 3))
    mixed.states.square().sum().backward()
    assert (ends.grad.abs().sum(-1) > 0).all()


def test_the_order_of_the_thoughts_does_not_matter():
    (states, ends), head = parts(), moved()
    order = torch.tensor([2, 0, 3, 1])
    one, other = head(states, ends), head(states, ends[:, :, order])
    torch.testing.assert_close(one.states, other.states)
    torch.testing.assert_close(one.attention[..., order], other.attention)


def test_a_thought_that_is_not_there_counts_for_nothing():
    (states, ends), head = parts(), moved()
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[0, 0], mask[1, 2, 1:] = False, False
    mixed = head(states, ends, mask)
    changed = ends.masked_fill(~mask[..., None], 9.0)
    torch.testing.assert_close(head(states, changed, mask).states, mixed.states)
    assert torch.equal(mixed.states[0, 0], states[0, 0]) and mixed.gate[0, 0] == 0 and not mixed.attention[0, 0].any()
    torch.testing.assert_close(mixed.states[1, 2], head(states[1, 2], ends[1, 2, :1]).states)


def test_each_thought_alone_is_a_matter_of_shape():
    (states, ends), head = parts(), moved()
    each = head(states[:, :, None].expand_as(ends), ends[..., None, :])
    assert each.states.shape == ends.shape and each.attention.shape == (2, 3, 4, 1)
    torch.testing.assert_close(each.states[:, :, 2], head(states, ends[:, :, 2:3]).states)


def test_without_thoughts_that_say_something_nothing_is_added():
    """The head has no bias and no way past the thoughts: an empty reading leaves a state alone, whatever was learnt."""
    (states, _), head = parts(), moved()
    head.v_proj.weight.data.zero_()
    assert torch.equal(head(states, torch.randn(2, 3, 4, 16)).states, states)


def test_a_width_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"width = 20: must be a multiple of .* n_heads = 8"):
        MixingHead(20)
