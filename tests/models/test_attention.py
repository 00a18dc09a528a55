"""Window attention against torch's own attention under a band mask, in its blocked and its dense form."""

import pytest
import torch
import torch.nn.functional as F

from forgelib.models.attention import SlidingWindowAttention, blocked_window, dense_window, rotate


def band(length: int, window: int) -> torch.Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance >= 0) & (distance < window)


@pytest.mark.parametrize("window", [1, 3, 8, 50])
@pytest.mark.parametrize("length", [1, 8, 21])
def test_both_forms_equal_torch_attention_with_a_band_mask(length, window):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, length, 4)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=band(length, window))
    dense, _ = dense_window(q, k, v, window, torch.arange(length), None)
    blocked, _ = blocked_window(q, k, v, window, None)
    torch.testing.assert_close(dense, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(blocked, expected, atol=1e-5, rtol=1e-5)


def test_padding_is_not_attended_to_and_queries_at_padding_stay_finite():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 21, 4)
    valid = torch.ones(2, 21, dtype=torch.bool)
    valid[1, :9] = False
    mask = band(21, 6)[None, None] & valid[:, None, None, :]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask | torch.eye(21, dtype=torch.bool))
    for mixed, _ in (blocked_window(q, k, v, 6, valid), dense_window(q, k, v, 6, torch.arange(21), valid)):
        assert mixed.isfinite().all()
        torch.testing.assert_close(mixed, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [4, 64])
def test_a_later_token_changes_nothing_before_it_and_the_window_is_kept(window):
    torch.manual_seed(0)
    attention = SlidingWindowAttention(16, 2, window, 10_000.0)
    x, changed, place = torch.randn(1, 20, 16), None, 9
    changed = x.clone()
    changed[:, place] += 1
    steps = torch.arange(20)

    def mix(states):
        return attention(states, *attention.keys_values(states, steps), steps, steps, None)

    moved = (mix(x) - mix(changed)).abs().amax(-1)[0]
    assert moved[:place].max() == 0
    reached = min(20, place + window)
    assert (moved[place:reached] > 0).all() and moved[reached:].sum() == 0


def test_rotary_logits_depend_on_the_distance_only():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8)
    near = rotate(q, torch.tensor([7]), 1e4) @ rotate(k, torch.tensor([3]), 1e4).mT
    far = rotate(q, torch.tensor([107]), 1e4) @ rotate(k, torch.tensor([103]), 1e4).mT
    torch.testing.assert_close(near, far, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [5, 21])
def test_max_logits_is_the_largest_visible_logit_of_each_head_over_all_calls(length):
    torch.manual_seed(0)
    attention, steps = SlidingWindowAttention(16, 2, 8, 10_000.0).train(), torch.arange(length)
    expected = torch.full((2,), float("-inf"))
    for scale in (1.0, 3.0, 0.5):
        x = -scale * torch.rand(3, length, 16)
        k, v = attention.keys_values(x, steps)
        attention(x, k, v, steps, steps, None)
        q = rotate(attention.split(attention.q_proj(x)), steps, 10_000.0)
        logits = (q @ k.mT / 8**0.5).masked_fill(~band(length, 8), float("-inf"))
        expected = torch.maximum(expected, logits.amax((0, 2, 3)).detach())
    torch.testing.assert_close(attention.max_logits, expected)
    attention.eval().max_logits = None
    attention(x, k, v, steps, steps, None)
    assert attention.max_logits is None


def test_logits_that_are_all_negative_have_a_negative_maximum():
    """The zeros that fill the last block up are no logits."""
    attention, steps = SlidingWindowAttention(4, 1, 4, 10_000.0).train(), torch.arange(6)
    with torch.no_grad():
        attention.q_proj.weight.copy_(torch.eye(4))
        attention.k_proj.weight.copy_(-torch.eye(4))
    x = torch.tensor([0.0, 1.0, 0.0, 1.0]).expand(1, 6, 4)  # the slow pair of dimensions hardly turns
    attention(x, *attention.keys_values(x, steps * 0), steps * 0, steps, None)
    assert attention.max_logits.item() == pytest.approx(-1.0)
