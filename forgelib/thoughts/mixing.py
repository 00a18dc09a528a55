"""The mixing head: how much of its thoughts a position takes into its state, nothing at first.

    read = attention of the state h over the end states of its K thoughts (8 heads)
    h + g W norm(read),      g = sigmoid(gate [h; read]),      W = 0 at step 0

W starts at zero, so at step 0 the output is h itself and the model predicts exactly what it did (Quiet-STaR,
2403.09629, section 4.3, where the weight is an MLP's and the states are interpolated). What is added comes from the
thoughts alone; h only chooses among them and how much: a head that could add something of its own would improve a model
without any thought, and that gain would be taken for theirs.

Shape legend: D width, H heads, K thoughts, d width of a head; ... any leading dimensions.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

N_HEADS = 8


class Mixed(NamedTuple):
    """states [..., D]; gate [...], 0 to 1, 0 without a thought; attention [..., K], the share of each thought."""

    states: Tensor
    gate: Tensor
    attention: Tensor


class MixingHead(nn.Module):
    """Raises ValueError where `width` is no multiple of `n_heads`."""

    def __init__(self, width: int, n_heads: int = N_HEADS):
        super().__init__()
        if n_heads < 1 or width % n_heads:
            raise ValueError(f"width = {width}: must be a multiple of the mixing head's n_heads = {n_heads}")
        self.width, self.n_heads = width, n_heads
        self.query_norm, self.thought_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(2 * width, 1)
        self.read_norm = nn.LayerNorm(width, bias=False)
        self.last = nn.Linear(width, width, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, states: Tensor, ends: Tensor, mask: Tensor | None = None) -> Mixed:
        """Mix the end states of thoughts, ends [..., K, D], into states [..., D].

        mask [..., K]: which thoughts there are, None means all. A state without one comes out as it went in. For what
        each thought does alone, give it as the only one: states[..., None, :], ends[..., None, :].
        """
        there = torch.ones(ends.shape[:-1], dtype=torch.bool, device=ends.device) if mask is None else mask
        asked, thoughts = self.query_norm(states), self.thought_norm(ends)
        q, k, v = (
            self._split(self.q_proj(asked)),
            self._split(self.k_proj(thoughts)),
            self._split(self.v_proj(thoughts)),
        )
        logits = torch.einsum("...hd,...khd->...hk", q, k) * q.shape[-1] ** -0.5
        logits = logits.masked_fill(~there[..., None, :], torch.finfo(logits.dtype).min)
        attention = torch.softmax(logits.float(), -1).to(v.dtype)
        read = torch.einsum("...hk,...khd->...hd", attention, v).flatten(-2)
        gate = torch.sigmoid(self.gate(torch.cat([asked, read], -1))) * there.any(-1, keepdim=True)
        mixed = states + gate * self.last(self.read_norm(read))
        return Mixed(mixed, gate[..., 0], attention.mean(-2) * there)

    def _split(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., H, d]."""
        return x.unflatten(-1, (self.n_heads, -1))
