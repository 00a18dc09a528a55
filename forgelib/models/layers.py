"""Small parts that every block shares: SwiGLU and a loss that never holds all logits at once."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

#: Above this many logits at once (64 MB in float32) the loss is computed in recomputed chunks.
LOGITS_AT_ONCE = 2**24


class SwiGLU(nn.Module):
    """Gated feed-forward: `down(silu(gate(x)) * up(x))` (Shazeer 2020). [B, T, D] -> [B, T, D]."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def token_cross_entropy(hidden: Tensor, head_weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats of each token, and whether the most likely token is the label.

    Args:
        hidden: [N, D] states. head_weight: [V, D]. labels: [N] token ids, none of them masked.
    Returns:
        losses [N] float32 with gradient, correct [N] bool without.
    The logits of a chunk live only while it is computed, in the forward and again in the backward pass.
    """

    def chunk_loss(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(states, head_weight).float()
        return F.cross_entropy(logits, targets, reduction="none"), logits.detach().argmax(-1) == targets

    chunk = max(1, LOGITS_AT_ONCE // head_weight.shape[0])
    if hidden.shape[0] <= chunk:
        return chunk_loss(hidden, labels)
    parts = [
        checkpoint(chunk_loss, states, targets, use_reentrant=False)
        for states, targets in zip(hidden.split(chunk), labels.split(chunk), strict=True)
    ]
    return torch.cat([loss for loss, _ in parts]), torch.cat([right for _, right in parts])
