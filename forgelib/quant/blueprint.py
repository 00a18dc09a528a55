"""What a decoder is told about a model: which layers, in which order, with which sizes. No model is known here.

    x -> blocks [norm -> attention [-> gate with a memory] -> + -> norm -> SwiGLU -> +] -> norm
      -> the recursion, where there is one -> head

`forgelib.phases.decoding` draws one from a Llama, a Qwen2 or a Cognate.
Shape legend: V vocabulary, D width, H heads, G heads of keys and values, d width of a head, C kernel of a convolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

#: A layer of a blueprint: a packed ternary layer or an nn.Linear.
Projection = nn.Module


@dataclass(frozen=True)
class Attention:
    """Projections [H d, D], [G d, D], [G d, D] and [D, H d]."""

    query: Projection
    key: Projection
    value: Projection
    out: Projection


@dataclass(frozen=True)
class FeedForward:
    """down(silu(gate x) * up x)."""

    gate: Projection
    up: Projection
    down: Projection


@dataclass(frozen=True)
class Memory:
    """A long-term memory and its gate (the formulas: decoder_memory.h).

    query, key, value: [D, D]; gates: [3H, D]; conv: [3D, 1, C]; initial: [H, dv, dk]; horizon in tokens;
    y_norm, m_norm: [D]; mix: [D, 2D]. on: False where the memory is neither read nor written.
    """

    query: Projection
    key: Projection
    value: Projection
    gates: Projection
    conv: Tensor
    initial: Tensor
    horizon: int
    y_norm: Tensor
    m_norm: Tensor
    mix: Projection
    on: bool = True


@dataclass(frozen=True)
class Block:
    """norm and feed_norm [D]: before attention and feed-forward in the backbone, after them in the recursion."""

    norm: Tensor
    attention: Attention
    feed_norm: Tensor
    feed: FeedForward
    memory: Memory | None = None


@dataclass(frozen=True)
class Recursion:
    """A net of blocks, used on z `micro_steps` times and on y once in a cycle; keys and values are those of x.

    first_latent: [D]. halting: [1, D] with a bias; its sigmoid stops a token at `threshold`.
    """

    blocks: Sequence[Block]
    first_latent: Tensor
    halting: Projection
    micro_steps: int
    max_cycles: int
    threshold: float


@dataclass(frozen=True)
class Rotary:
    """frequencies: [d / 2] radians a token; cosines and sines times `scale`. pairs: neighbours 2i, 2i + 1 turn
    together, else i and i + d / 2.
    """

    frequencies: Tensor
    scale: float
    pairs: bool


@dataclass(frozen=True)
class Blueprint:
    """A whole model. embedding: [V, D]; norm: [D]; head: [V, D]; window: tokens that attention sees, or None for all.

    epsilon: of every norm.
    """

    embedding: Tensor
    blocks: Sequence[Block]
    norm: Tensor
    head: Projection
    heads: int
    kv_heads: int
    head_width: int
    rotary: Rotary
    epsilon: float
    window: int | None = None
    recursion: Recursion | None = None

    @property
    def width(self) -> int:
        """D."""
        return self.embedding.shape[1]
