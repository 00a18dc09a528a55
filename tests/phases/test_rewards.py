"""What thoughts earn, and that REINFORCE on it is the gradient of the expected reward."""

import math

import pytest
import torch

from forgelib.phases.rewards import binary_rewards, kl_per_token, leave_one_out, likelihood_rewards, policy_terms


def test_likelihood_rewards_sum_to_zero_before_they_are_limited():
    values = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)) * 4
    rewards = likelihood_rewards(values, limit=100.0)
    assert torch.allclose(rewards.sum(1), torch.zeros(5), atol=1e-5)
    assert torch.equal(rewards.argsort(1), values.argsort(1))
    assert likelihood_rewards(values, limit=1.0).abs().max() == 1.0


def test_binary_rewards_go_to_thoughts_that_were_needed():
    right = torch.tensor([[True, False], [True, True]])
    assert binary_rewards(right, torch.tensor([False, True])).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_a_thought_is_compared_with_the_others_alone():
    advantages = leave_one_out(torch.tensor([[1.0, 2.0, 6.0]]))
    assert advantages.tolist() == [[1 - 4, 2 - 3.5, 6 - 1.5]]
    assert leave_one_out(torch.ones(2, 4)).abs().max() == 0
    with pytest.raises(ValueError, match="at least two"):
        leave_one_out(torch.ones(2, 1))


@pytest.mark.parametrize("baseline", [True, False])
def test_the_policy_gradient_of_a_bandit_is_the_analytic_one(baseline):
    """Two tokens, p = softmax(theta), rewards 1, 3: d E[r] / d theta_i = p_i (r_i - E[r]), in four standard errors."""
    theta, values = torch.tensor([0.4, -0.3], requires_grad=True), torch.tensor([1.0, 3.0])
    p = theta.detach().softmax(0)
    analytic = p * (values - (p * values).sum())
    drawn = torch.multinomial(p, 1000 * 6, replacement=True, generator=torch.Generator().manual_seed(0)).view(1000, 6)
    rewards = values[drawn]
    advantages = leave_one_out(rewards) if baseline else rewards
    log_probs = theta.log_softmax(0)[drawn]
    terms = -policy_terms(log_probs, advantages).mean(1)
    estimates = torch.stack([torch.autograd.grad(term, theta, retain_graph=True)[0] for term in terms])
    error = estimates.std(0) / len(estimates) ** 0.5
    assert bool(((estimates.mean(0) - analytic).abs() < 4 * error).all()), (estimates.mean(0), analytic, error)
    assert bool((error < 0.1 * analytic.abs()).all()), "the test would see a wrong sign or factor"


def test_the_baseline_makes_the_estimate_steadier():
    """Rewards of 10 and 11: without the others' mean the estimate is mostly that of their common size."""
    theta = torch.tensor([0.4, -0.3])
    p = theta.softmax(0)
    drawn = torch.multinomial(p, 1000 * 6, replacement=True, generator=torch.Generator().manual_seed(0)).view(1000, 6)
    rewards, score = torch.tensor([10.0, 11.0])[drawn], (drawn == 1).float() - p[1]  # d log p(drawn) / d theta_1
    spread = [float((weights * score).mean(1).std()) for weights in (leave_one_out(rewards), rewards)]
    assert spread[0] < 0.2 * spread[1]


def test_kl_is_zero_for_equal_distributions_and_the_formula_else():
    p, q = torch.tensor([0.2, 0.8]).log(), torch.tensor([0.5, 0.5]).log()
    assert kl_per_token(p, p) == 0
    assert float(kl_per_token(p, q)) == pytest.approx(0.2 * math.log(0.4) + 0.8 * math.log(1.6), abs=1e-6)
