"""What a decoder is told about a model: which layers, in which order, with which sizes. No model is known here.

    x -> blocks [norm -> attention [-> gate with a memory] -> + -> norm -> SwiGLU -> +] -> norm
      -> the recursion, where there is one -> head

`forgelib.phases.decoding` draws one from a Llama, a Qwen2 or a Cognate.
Shape legend: V vocabulary, D width, H heads, G heads of keys and values, d width of a head, C kernel of a convolution.
"""

from collections.abc import Iterator, Sequence
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

    epsilon: of every norm. Raises ValueError for a part that has not the size it must have: native code checks none.
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

    def __post_init__(self):
        for what, have, must in self._sizes():
            if tuple(have) != must:
                raise ValueError(f"{what} is {list(have)}: here it must be {list(must)}")
        if self.kv_heads < 1 or self.heads % self.kv_heads or self.head_width % 2:
            raise ValueError(f"{self.heads} heads of {self.head_width} cannot share {self.kv_heads} heads of keys")

    def _sizes(self) -> Iterator[tuple[str, Sequence[int], tuple[int, ...]]]:
        """What, its shape and the shape it must have."""
        vocabulary, width = self.embedding.shape
        yield "norm", self.norm.shape, (width,)
        yield "head", _size(self.head), (vocabulary, width)
        yield "rotary.frequencies", self.rotary.frequencies.shape, (self.head_width // 2,)
        for i, block in enumerate(self.blocks):
            yield from self._block_sizes(f"blocks[{i}]", block)
        if self.recursion is not None:
            yield "recursion.first_latent", self.recursion.first_latent.shape, (width,)
            yield "recursion.halting", _size(self.recursion.halting), (1, width)
            for i, block in enumerate(self.recursion.blocks):
                yield from self._block_sizes(f"recursion.blocks[{i}]", block)

    def _block_sizes(self, name: str, block: Block) -> Iterator[tuple[str, Sequence[int], tuple[int, ...]]]:
        queries, keys, width = self.heads * self.head_width, self.kv_heads * self.head_width, self.width
        inner = _size(block.feed.gate)[0]
        layers = {
            "attention.query": (block.attention.query, (queries, width)),
            "attention.key": (block.attention.key, (keys, width)),
            "attention.value": (block.attention.value, (keys, width)),
            "attention.out": (block.attention.out, (width, queries)),
            "feed.gate": (block.feed.gate, (inner, width)),
            "feed.up": (block.feed.up, (inner, width)),
            "feed.down": (block.feed.down, (width, inner)),
        }
        tensors = {"norm": (block.norm, (width,)), "feed_norm": (block.feed_norm, (width,))}
        if (memory := block.memory) is not None:
            yield f"{name}.attention.query", _size(block.attention.query), (width, width)
            heads, kernel = len(memory.initial), memory.conv.shape[-1]
            layers |= {f"memory.{part}": (getattr(memory, part), (width, width)) for part in ("query", "key", "value")}
            layers |= {
                "memory.gates": (memory.gates, (3 * heads, width)),
                "memory.mix": (memory.mix, (width, 2 * width)),
            }
            tensors |= {f"memory.{part}": (getattr(memory, part), (width,)) for part in ("y_norm", "m_norm")}
            tensors["memory.initial"] = (memory.initial, (heads, width // heads, width // heads))
            tensors["memory.conv"] = (memory.conv, (3 * width, 1, kernel))
        yield from ((f"{name}.{part}", _size(layer), must) for part, (layer, must) in layers.items())
        yield from ((f"{name}.{part}", tensor.shape, must) for part, (tensor, must) in tensors.items())


def _size(layer: Projection) -> tuple[int, int]:
    """Outputs and inputs."""
    return layer.out_features, layer.in_features
