"""A block of the backbone, and what the tokens in it may look at."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.cache_utils import Cache

EPSILON = 1e-6


@dataclass
class Reach:
    """What the new tokens may look at. positions [T] in tokens, slots [T] own key among S, valid [B, S] or None."""

    positions: Tensor
    slots: Tensor
    valid: Tensor | None
    cache: Cache | None

    def keys_values(self, attention: nn.Module, x: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, S, d] in reach of layer `layer`: those of x and the cached ones before."""
        k, v = attention.keys_values(x, self.positions)
        return (k, v) if self.cache is None else self.cache.update(k, v, layer)

    def new_valid(self, n_new: int) -> Tensor | None:
        """Validity [B, T] of the new tokens alone."""
        return None if self.valid is None else self.valid[:, -n_new:]


class CognateBlock(nn.Module):
    """Pre-norm block: window attention, gated with a long-term memory where the block has one, then SwiGLU."""

    def __init__(
        self,
        index: int,
        d_model: int,
        attention: nn.Module,
        feed_forward: nn.Module,
        memory: nn.Module | None,
        memory_gate: nn.Module | None,
    ):
        super().__init__()
        self.index = index
        self.mix_norm = nn.RMSNorm(d_model, eps=EPSILON)
        self.attention = attention
        self.memory, self.memory_gate = memory, memory_gate
        self.out_proj = nn.Linear(d_model, d_model, bias=False)
        self.feed_forward_norm = nn.RMSNorm(d_model, eps=EPSILON)
        self.feed_forward = feed_forward

    def forward(self, x: Tensor, reach: Reach, use_memory: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x [B, T, D] -> the new x, and the gate's entropy and memory share (None where no memory was read)."""
        h = self.mix_norm(x)
        k, v = reach.keys_values(self.attention, h, self.index)
        mixed = self.attention(h, k, v, reach.positions, reach.slots, reach.valid)
        entropy = share = None
        if self.memory is not None:
            recalled = self._recall(h, reach) if use_memory else None
            mixed, entropy, share = self.memory_gate(mixed, recalled)
        x = x + self.out_proj(mixed)
        return x + self.feed_forward(self.feed_forward_norm(x)), entropy, share

    def _recall(self, h: Tensor, reach: Reach) -> Tensor:
        before = (None, None) if reach.cache is None else reach.cache.memories[self.index] or (None, None)
        recalled, *after = self.memory(h, *before, reach.new_valid(h.shape[1]))
        if reach.cache is not None:
            reach.cache.memories[self.index] = tuple(after)
        return recalled
