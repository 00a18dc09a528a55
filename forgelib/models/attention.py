"""Sliding-window attention with rotary positions, linear in the length of the text.

Shape legend: B batch, H heads, T queries, S keys, W window, N blocks of W tokens, d width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED = -1e9


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Rotary position embedding (Su et al. 2021, eq. 34): neighbours 2i, 2i + 1 turn as one complex number.

    Args: x [B, H, T, d]; positions [T] or [B, T] in tokens; theta the base of the wavelengths.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = positions.to(torch.float32)[..., None] * frequencies
    angles = angles if positions.dim() == 1 else angles[:, None]
    pairs = torch.view_as_complex(x.float().unflatten(-1, (half, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2).to(x.dtype)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(d)) v where `seen`. Returns the mix [..., T, d] and the logits, hidden ones at -1e9."""
    logits = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).float()
    logits += torch.zeros(seen.shape, device=q.device).masked_fill(~seen, MASKED)
    return torch.softmax(logits, dim=-1).to(v.dtype) @ v, logits


def dense_window(q: Tensor, k: Tensor, v: Tensor, window: int, slots: Tensor, valid: Tensor | None):
    """Queries anywhere among the keys. q [B, H, T, d], k, v [B, H, S, d], slots [T] or [B, T]: each query's own key."""
    distance = slots[..., :, None] - torch.arange(k.shape[2], device=q.device)
    seen = (distance >= 0) & (distance < window)
    seen = seen[None, None] if slots.dim() == 1 else seen[:, None]
    if valid is not None:
        own = (distance == 0)[None, None] if slots.dim() == 1 else (distance == 0)[:, None]
        seen = (seen & valid[:, None, None, :]) | own
    return masked_attention(q, k, v, seen)


def blocked_window(q: Tensor, k: Tensor, v: Tensor, window: int, valid: Tensor | None):
    """Every token a query, T = S: each block of W queries looks at its own and the previous block, cost T x 2W."""
    batch, heads, length, width = q.shape
    n_blocks = -(-length // window)
    padding = n_blocks * window - length
    if padding:
        q, k, v = (F.pad(x, (0, 0, 0, padding)) for x in (q, k, v))
    q, k, v = (x.reshape(batch, heads, n_blocks, window, width) for x in (q, k, v))
    k, v = (torch.cat([F.pad(x[:, :, :-1], (0, 0, 0, 0, 1, 0)), x], dim=3) for x in (k, v))
    query = torch.arange(window, device=q.device)[:, None] + window
    key = torch.arange(2 * window, device=q.device)[None, :]
    seen = ((query - key >= 0) & (query - key < window)).expand(1, 1, n_blocks, window, 2 * window).clone()
    seen[:, :, 0, :, :window] = False
    if valid is not None:
        blocks = F.pad(valid, (window, padding)).unfold(1, 2 * window, window)
        seen = (seen & blocks[:, None, :, None, :]) | (query == key)
    mixed, logits = masked_attention(q, k, v, seen)
    mixed, logits = (x.flatten(2, 3)[:, :, :length] for x in (mixed, logits))
    return mixed, logits


class SlidingWindowAttention(nn.Module):
    """Causal attention over the last `window` tokens, without an output projection (the caller mixes first).

    In training it keeps `max_logits` [H], the largest attention logit per head since the optimizer last
    looked: QK-Clip scales the weights of a head whose logit grew beyond its threshold.
    """

    def __init__(self, d_model: int, n_heads: int, window: int, rope_theta: float):
        super().__init__()
        self.num_heads, self.window, self.rope_theta = n_heads, window, rope_theta
        self.q_proj = nn.Linear(d_model, d_model, bias=False)
        self.k_proj = nn.Linear(d_model, d_model, bias=False)
        self.v_proj = nn.Linear(d_model, d_model, bias=False)
        self.max_logits: Tensor | None = None

    def split(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, d]."""
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def keys_values(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values [B, H, T, d] of the states x [B, T, D]."""
        return rotate(self.split(self.k_proj(x)), positions, self.rope_theta), self.split(self.v_proj(x))

    def forward(
        self, x: Tensor, k: Tensor, v: Tensor, positions: Tensor, slots: Tensor, valid: Tensor | None
    ) -> Tensor:
        """Mix of values [B, T, D] for the queries of x [B, T, D].

        Args:
            k, v: [B, H, S, d], keys already rotated. positions: [T] or [B, T] of the queries, in tokens.
            slots: [T] or [B, T], index of each query's own key among the S keys.
            valid: [B, S] False at padding, or None.
        """
        q = rotate(self.split(self.q_proj(x)), positions, self.rope_theta)
        if slots.dim() == 1 and q.shape[2] == k.shape[2] > 4 * self.window:  # up to there the dense form is as fast
            mixed, logits = blocked_window(q, k, v, self.window, valid)
        else:
            mixed, logits = dense_window(q, k, v, self.window, slots, valid)
        if self.training:
            self._remember_largest(logits.detach())
        return mixed.transpose(1, 2).reshape(x.shape)

    def _remember_largest(self, logits: Tensor) -> None:
        largest = logits.amax(dim=tuple(i for i in range(logits.dim()) if i != 1))
        self.max_logits = largest if self.max_logits is None else torch.maximum(self.max_logits, largest)
