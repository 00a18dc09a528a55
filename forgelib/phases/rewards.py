"""What a thought earns, and what REINFORCE makes of it.

    likelihood   r_k = log P(answer | question, thought k) - mean over the K thoughts    (Quiet-STaR, 2403.09629, eq. 8)
    binary       r_k = 1 where the answer after thought k is right and the one without is wrong, else 0  (METHOD)

    A_k = r_k - mean of the other K - 1 rewards                                          (leave-one-out baseline)
    gradient = E[ A_k * grad log P(thought k | question) ]

Corrected: weighting the answer's own cross-entropy by the reward is no policy gradient. What the reward multiplies is
the log-probability of the *sampled thought tokens*; the baseline does not depend on the thought it is taken from, so
the gradient stays unbiased.

Shape legend: B problems, K thoughts.
"""

import torch
from torch import Tensor

REWARDS = ("likelihood", "binary")


def likelihood_rewards(log_likelihoods: Tensor, limit: float) -> Tensor:
    """Rewards [B, K], nats: log P of the answer after each thought above its mean over the thoughts, within +-`limit`.

    They sum to 0 over the thoughts of a problem before they are limited.
    """
    return (log_likelihoods - log_likelihoods.mean(1, keepdim=True)).clamp(-limit, limit)


def binary_rewards(right: Tensor, right_without: Tensor) -> Tensor:
    """Rewards [B, K] of right [B, K] with each thought and right_without [B]: what needs no thought earns nothing."""
    return (right & ~right_without[:, None]).float()


def leave_one_out(rewards: Tensor) -> Tensor:
    """Advantages [B, K]: each reward less the mean of the others. Raises ValueError below two thoughts."""
    n_thoughts = rewards.shape[1]
    if n_thoughts < 2:
        raise ValueError("one thought has no others to be compared with: sample at least two (n_thoughts)")
    return (rewards - rewards.mean(1, keepdim=True)) * n_thoughts / (n_thoughts - 1)


def policy_terms(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """-A_k log P(thought k), of one shape: the gradient of their mean is minus the policy gradient.

    log_probs: nats, summed over the sampled tokens, with gradient; advantages get none.
    """
    return -advantages.detach() * log_probs


def kl_per_token(log_probs: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) in nats at each token, exact over the vocabulary: [..., V] -> [...]."""
    kl = log_probs.exp() * (log_probs - reference)
    return torch.where(log_probs.isfinite(), kl, 0.0).sum(-1)


def entropy_per_token(log_probs: Tensor) -> Tensor:
    """-sum P log P in nats at each token, over the vocabulary: [..., V] -> [...]."""
    return -torch.where(log_probs.isfinite(), log_probs.exp() * log_probs, 0.0).sum(-1)
