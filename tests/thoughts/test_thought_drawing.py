"""Drawing from the nucleus: the set that transformers keeps, normalised, and drawn from in the right proportions."""

import pytest
import torch
from transformers import TopPLogitsWarper

from forgelib.thoughts.drawing import draw, in_nucleus, numbers_for, policy


def logits_of(rows=6, vocabulary=50, seed=0):
    return 2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.99])
def test_the_nucleus_is_the_one_that_transformers_keeps(top_p):
    logits = logits_of()
    kept = TopPLogitsWarper(top_p)(None, logits).isfinite()
    assert torch.equal(in_nucleus(logits.log_softmax(-1), top_p), kept) and not kept.all()


def test_the_policy_is_the_full_distribution_normalised_over_the_nucleus():
    logits = logits_of()
    full, own = policy(logits, 1.0, 1.0), policy(logits, 1.0, 0.9)
    assert torch.equal(full, logits.log_softmax(-1))
    kept = own.isfinite()
    torch.testing.assert_close(own.exp().sum(-1), torch.ones(6))
    held = (full.exp() * kept).sum(-1, keepdim=True)
    assert ((held >= 0.9) & (held < 1)).all()
    expected = (full - held.log()).masked_fill(~kept, float("-inf"))
    torch.testing.assert_close(own, expected)
    torch.testing.assert_close(policy(logits, 0.5, 1.0), (logits / 0.5).log_softmax(-1))


def test_greedy_puts_everything_on_the_likeliest_token():
    logits = logits_of()
    own = policy(logits, 0.0, 0.9)
    assert torch.equal(own.exp().sum(-1), torch.ones(6)) and torch.equal(draw(own, None), logits.argmax(-1))


def test_a_token_that_was_drawn_is_never_left_out_of_its_nucleus():
    logits = logits_of()
    worst = logits.argmin(-1)
    assert policy(logits, 1.0, 0.5).gather(-1, worst[:, None]).isinf().all()
    own = policy(logits, 1.0, 0.5, held=worst)
    assert own.gather(-1, worst[:, None]).isfinite().all()
    torch.testing.assert_close(own.exp().sum(-1), torch.ones(6))


def test_tokens_are_drawn_as_often_as_they_are_likely_and_never_from_outside_the_nucleus():
    n, own = 20_000, policy(logits_of(1, 12, seed=3), 1.0, 0.9)[0]
    numbers = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(draw(own.expand(n, -1), numbers), minlength=12)
    probabilities = own.exp().double()
    assert int(counts[probabilities == 0].sum()) == 0 and 1 < int((counts > 0).sum()) < 12
    deviation = (counts / n - probabilities).abs()
    assert (deviation <= 4 * (probabilities * (1 - probabilities) / n).sqrt() + 1e-12).all()


def test_the_ends_of_the_numbers_stay_inside_the_nucleus():
    own = policy(torch.tensor([[-9.0, 3.0, -9.0, 2.0, -9.0]]), 1.0, 0.9).expand(2, -1)
    assert draw(own, torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == [1, 3]


def test_numbers_belong_to_a_text_and_to_its_real_positions():
    def numbers(active):
        return numbers_for(torch.tensor(active), 2, 3, torch.Generator().manual_seed(5))

    short, padded = numbers([[True, True]]), numbers([[False, True, True], [True, True, True]])
    assert torch.equal(short[0], padded[0, 1:]) and not padded[0, 0].any()
    assert not torch.equal(padded[0, 1:], padded[1, :2])
