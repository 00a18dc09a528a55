"""Grokfast-EMA (2405.20233, algorithm 2) against its recursion written out in plain floats."""

import pytest
import torch
from torch import nn

from forgelib.optim import MuGrokConfig, MuonGrokfast
from forgelib.optim.grokfast import amplify

ALPHA, LAMBDA = 0.9, 2.0


def test_the_filter_is_the_papers_recursion_started_at_the_first_gradient():
    gradients = [3.0, -1.0, 0.5, 0.25, -4.0]
    slow, h = [torch.tensor([gradients[0]], dtype=torch.float64)], gradients[0]
    for g in gradients:
        h = ALPHA * h + (1 - ALPHA) * g
        (amplified,) = amplify([torch.tensor([g], dtype=torch.float64)], slow, ALPHA, LAMBDA)
        assert amplified.item() == pytest.approx(g + LAMBDA * h, abs=1e-14)
        assert slow[0].item() == pytest.approx(h, abs=1e-14)


def test_the_optimizer_feeds_adamw_the_amplified_gradient():
    """First moment with beta1 = 0 is the gradient that AdamW saw."""
    model = nn.Linear(3, 1).double()
    config = MuGrokConfig(grokfast_alpha=ALPHA, grokfast_lambda=LAMBDA, adamw_betas=(0.0, 0.5), weight_decay=0.0)
    optimizer, h = MuonGrokfast(model, config), None
    for step in range(6):
        g = torch.randn(1, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model.weight.grad, model.bias.grad = g.clone(), torch.ones(1, dtype=torch.float64)
        optimizer.step()
        h = g if h is None else ALPHA * h + (1 - ALPHA) * g
        assert torch.allclose(optimizer.state[model.weight]["exp_avg"], g + LAMBDA * h, atol=1e-14)
        assert torch.equal(model.weight.grad, g), "the caller's gradient is left as it was"


def test_lambda_zero_keeps_no_slow_part():
    model = nn.Linear(3, 3)
    optimizer = MuonGrokfast(model, MuGrokConfig(grokfast_lambda=0.0))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert all("slow" not in state for state in optimizer.state.values())


def test_a_larger_lambda_amplifies_more():
    """Corrected against the documents: lambda is the gain of the slow part, not a filter's strength."""
    g, slow = [torch.ones(2)], [torch.ones(2)]
    gains = [amplify(g, [slow[0].clone()], 0.98, lam)[0][0].item() for lam in (0.1, 0.3, 2.0)]
    assert gains == pytest.approx([1.1, 1.3, 3.0])
