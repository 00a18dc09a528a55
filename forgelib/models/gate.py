"""The gate between what attention sees and what the long-term memory recalls (Titans, 2501.00663, section 4.2)."""

import torch
from torch import Tensor, nn

EPSILON = 1e-6


class MemoryGate(nn.Module):
    """g = sigmoid(W [y; m]), out = g y + (1 - g) m, y and m normalised with learned vectors (Titans, section 4.2).

    Returns the mix [B, T, D], the mean entropy of g in nats (a bonus in the loss keeps g from saturating) and the
    share of the mix that is memory, |(1 - g) m| / (|g y| + |(1 - g) m|), without gradient.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.y_norm = nn.RMSNorm(d_model, eps=EPSILON)
        self.m_norm = nn.RMSNorm(d_model, eps=EPSILON)
        self.gate = nn.Linear(2 * d_model, d_model)

    def forward(self, y: Tensor, m: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        y = self.y_norm(y)
        if m is None:
            return y, None, None
        m = self.m_norm(m)
        logit = self.gate(torch.cat([y, m], dim=-1))
        g = torch.sigmoid(logit)
        entropy = (nn.functional.softplus(logit) - g * logit).mean()
        from_attention, from_memory = g * y, (1 - g) * m
        with torch.no_grad():
            size = from_memory.norm(dim=-1)
            share = (size / (from_attention.norm(dim=-1) + size + EPSILON)).mean()
        return from_attention + from_memory, entropy, share
