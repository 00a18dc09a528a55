"""One token of a packed model in one native call (decoder.cpp): the model as addresses, and what it keeps meanwhile.

decoder = Decoder(blueprint)            layers are read where they lie, the head is kept in float16
decoder.start(300)                      an empty cache, for 300 tokens where attention sees all of them
logits = decoder.step(token)            float32 [V], the next call's own

One text at a time. Dials and weights changed later need a new Decoder.
"""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import native
from .blueprint import Attention, Block, Blueprint, FeedForward, Memory, Projection, Recursion
from .linear import PackedTernaryLinear

PANEL = 64
Address, Size, Real, Flag = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_float, ctypes.c_int


class CannotDecode(RuntimeError):
    """A model cannot be decoded natively, here or at all; the text says why."""


def _struct(name: str, *fields: tuple[type, str]) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": [(n, kind) for kind, names in fields for n in names.split()]})


# The structs of decoder_model.h, field for field.
_Linear = _struct("Linear", (native.LayerStruct, "layer"), (Address, "half full"))
_Attention = _struct("Attention", (_Linear, "query key value out"), (Address, "keys values"))
_FeedForward = _struct("FeedForward", (_Linear, "gate up down"))
_Memory = _struct(
    "Memory",
    (_Linear, "query key value gates mix"),
    (Address, "conv y_norm m_norm tail memory momentum"),
    (Size, "heads conv_kernel"),
    (Real, "keeps"),
    (Flag, "on"),
)
_Block = _struct(
    "Block",
    (Address, "norm"),
    (_Attention, "attention"),
    (Address, "feed_norm"),
    (_FeedForward, "feed"),
    (Address, "memory"),
)
_Model = _struct(
    "Model",
    (Size, "width heads kv_heads head_width slots"),
    (Real, "epsilon"),
    (Address, "frequencies"),
    (Real, "rotary_scale"),
    (Flag, "rotary_pairs"),
    (Address, "embedding blocks"),
    (Size, "n_blocks"),
    (Address, "norm recursion"),
    (Size, "n_recursion"),
    (Address, "first_latent"),
    (_Linear, "halting"),
    (Size, "micro_steps max_cycles"),
    (Real, "threshold"),
    (_Linear, "head"),
    (Address, "kernel"),
    (Flag, "path"),
    (Size, "worth_threads"),
)


class Decoder:
    """A model as the native code reads it, and the state of one text.

    Args: path: of the kernel, None for the best of this machine. Raises CannotDecode with the reason where there is
    no compiler, or a tensor is not float32 on the CPU.
    """

    def __init__(self, blueprint: Blueprint, path: str | None = None):
        kernel = native.kernel()
        if kernel is None:
            raise CannotDecode(f"there is no native kernel ({native.why_not()})")
        self.path = kernel.paths[-1] if path is None else path
        if self.path not in kernel.paths:
            raise ValueError(f"path = {path!r}: here there are {', '.join(kernel.paths)}")
        try:
            self._step = native.decoder(self.path)
        except native.CannotBuild as error:
            raise CannotDecode(str(error)) from None
        self.blueprint, self.threads_possible = blueprint, kernel.threads
        self._kept: list[object] = []
        self._own_bytes = 0
        self.blocks = (*blueprint.blocks, *(blueprint.recursion.blocks if blueprint.recursion else ()))
        self._model = self._whole(kernel)
        self._logits = torch.empty(blueprint.embedding.shape[0])
        self.position, self.cycles, self.capacity = 0, 0, 0

    def start(self, n_tokens: int) -> None:
        """Forget everything; room for `n_tokens` from now on (any number where attention has a window)."""
        b = self.blueprint
        slots = b.window or n_tokens
        if slots != self._model.slots:
            self.keys = torch.zeros(len(self.blocks), b.kv_heads, b.head_width, slots)
            self.values = torch.zeros(len(self.blocks), b.kv_heads, slots, b.head_width)
            for i, struct in enumerate((*self._blocks, *self._recursion)):
                struct.attention.keys = self.keys[i].data_ptr()
                struct.attention.values = self.values[i].data_ptr()
        self._model.slots = slots
        self.position, self.capacity = 0, n_tokens if b.window is None else 2**62
        for block, memory in zip(b.blocks, self.memories, strict=True):
            if memory is not None:
                state, momentum, tail = memory
                state.copy_(block.memory.initial.transpose(-1, -2))
                momentum.zero_(), tail.zero_()

    def step(self, token: int, logits: bool = True) -> Tensor | None:
        """Read a token; the logits [V] of the next one, or None where they are not asked for.

        Raises ValueError for an unknown token, or more tokens than `start` made room for.
        """
        vocabulary = len(self.blueprint.embedding)
        if not 0 <= token < vocabulary:
            raise ValueError(f"token {token}: this model knows 0 to {vocabulary - 1}")
        if self.position >= self.capacity:
            raise ValueError(f"there was room for {self.capacity} tokens: call start with more")
        threads = torch.get_num_threads() if self.threads_possible else 1
        where = self._logits.data_ptr() if logits else None
        self.cycles = self._step(self._address, self.position, token, threads, where)
        self.position += 1
        return self._logits if logits else None

    def take_over(
        self, position: int, keys_values: Sequence[tuple[Tensor, Tensor]], memories: Sequence[tuple | None] = ()
    ) -> None:
        """Go on after `position` tokens that torch has read; call `start` before.

        Args:
            keys_values: for each block, then each of the recursion, rotated keys and values [G, S, d] of the last S
                tokens. memories: for each block its memory and momentum [H, dv, dk] and tail [3D, C - 1], or None.
        """
        if position >= self.capacity:
            raise ValueError(f"there was room for {self.capacity} tokens, {position} are read: call start with more")
        for i, (keys, values) in enumerate(keys_values):
            kept = min(keys.shape[1], self._model.slots)
            slots = torch.arange(position - kept, position) % self._model.slots
            self.keys[i][:, :, slots] = keys[:, keys.shape[1] - kept :].transpose(1, 2)
            self.values[i][:, slots] = values[:, values.shape[1] - kept :]
        for own, given in zip(self.memories, memories, strict=False):
            if given is not None:
                state, momentum, tail = given
                own[0].copy_(state.transpose(-1, -2)), own[1].copy_(momentum.transpose(-1, -2)), own[2].copy_(tail.t())
        self.position = position

    def extra_bytes(self) -> int:
        """Bytes kept beside the model: layers in panels, and the state."""
        state = [self.keys, self.values] if self._model.slots else []
        state += [part for memory in self.memories if memory is not None for part in memory]
        return self._own_bytes + sum(t.nbytes for t in state)

    def _whole(self, kernel: native.Kernel) -> ctypes.Structure:
        b, model = self.blueprint, _Model()
        self.memories = [None if block.memory is None else self._fresh(block.memory) for block in b.blocks]
        self._blocks = (_Block * len(b.blocks))(*map(self._block, b.blocks, self.memories))
        self._recursion = (_Block * (len(b.recursion.blocks) if b.recursion else 0))()
        model.width, model.heads, model.kv_heads, model.head_width = b.width, b.heads, b.kv_heads, b.head_width
        model.frequencies, model.rotary_scale = self._at(b.rotary.frequencies), b.rotary.scale
        model.rotary_pairs, model.epsilon = b.rotary.pairs, b.epsilon
        model.embedding, model.norm, model.head = self._at(b.embedding), self._at(b.norm), self._linear(b.head)
        model.blocks, model.n_blocks = ctypes.addressof(self._blocks), len(b.blocks)
        if b.recursion:
            self._put_recursion(model, b.recursion)
        model.kernel, model.path = ctypes.cast(kernel.linears, Address).value, kernel.paths.index(self.path)
        model.worth_threads = native.WORTH_THREADS
        self._address = ctypes.addressof(model)
        return model

    def _put_recursion(self, model: ctypes.Structure, recursion: Recursion) -> None:
        self._recursion[:] = [self._block(block, None) for block in recursion.blocks]
        model.recursion, model.n_recursion = ctypes.addressof(self._recursion), len(recursion.blocks)
        model.first_latent, model.halting = self._at(recursion.first_latent), self._linear(recursion.halting)
        model.micro_steps, model.max_cycles = recursion.micro_steps, recursion.max_cycles
        model.threshold = recursion.threshold

    def _block(self, block: Block, state: tuple | None) -> ctypes.Structure:
        struct = _Block(norm=self._at(block.norm), feed_norm=self._at(block.feed_norm))
        self._put_layers(struct.attention, block.attention, "query", "key", "value", "out")
        self._put_layers(struct.feed, block.feed, "gate", "up", "down")
        if block.memory is not None:
            struct.memory = ctypes.addressof(self._keep(self._memory(block.memory, state)))
        return struct

    def _fresh(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """Memory and momentum [H, dk, dv] and the convolution's tail [C - 1, 3D], of no text yet."""
        state = torch.zeros(memory.initial.transpose(-1, -2).shape)
        channels, _, kernel = memory.conv.shape
        return state, torch.zeros_like(state), torch.zeros(kernel - 1, channels)

    def _memory(self, memory: Memory, state: tuple[Tensor, Tensor, Tensor]) -> ctypes.Structure:
        struct = _Memory(heads=len(memory.initial), keeps=1.0 - 1.0 / memory.horizon, on=memory.on)
        self._put_layers(struct, memory, "query", "key", "value", "gates", "mix")
        struct.memory, struct.momentum, struct.tail = (part.data_ptr() for part in state)
        struct.conv, struct.conv_kernel = self._at(memory.conv.squeeze(1).t()), memory.conv.shape[-1]
        struct.y_norm, struct.m_norm = self._at(memory.y_norm), self._at(memory.m_norm)
        return struct

    def _put_layers(self, struct: ctypes.Structure, part: Attention | FeedForward | Memory, *names: str) -> None:
        for name in names:
            setattr(struct, name, self._linear(getattr(part, name)))

    def _linear(self, module: Projection) -> ctypes.Structure:
        if isinstance(module, PackedTernaryLinear):
            operand = self._keep(module.operand())
            self._check(operand.codes, operand.scales)
            return _Linear(layer=operand.struct)
        if type(module) is not nn.Linear:
            raise CannotDecode(f"a layer is a {type(module).__name__}: pack_model first, or keep it an nn.Linear")
        bias = None if module.bias is None else self._at(module.bias)
        layer = native.LayerStruct(None, None, bias, *module.weight.shape)
        panels = self._keep(in_panels(module.weight.detach()))
        self._own_bytes += panels.nbytes
        return _Linear(layer=layer, **{"half" if panels.dtype == torch.float16 else "full": panels.data_ptr()})

    def _at(self, tensor: Tensor) -> int:
        """The address of a float32 tensor, copied only where its rows do not follow each other."""
        self._check(tensor)
        return self._keep(tensor.detach().contiguous()).data_ptr()

    def _check(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            if not tensor.is_cpu or tensor.dtype not in (torch.float32, torch.uint8):
                raise CannotDecode(f"a tensor is {tensor.dtype} on {tensor.device}: float32 on the CPU is read")

    def _keep(self, part: object) -> object:
        self._kept.append(part)
        return part


def in_panels(weight: Tensor) -> Tensor:
    """A weight [N, K] as [ceil(N / 64), K, 64], padded with zeros; float16 where that holds it exactly, else float32.

    Raises CannotDecode for NaN or infinity, or another type or device.
    """
    if not weight.is_cpu or weight.dtype != torch.float32:
        raise CannotDecode(f"a weight is {weight.dtype} on {weight.device}: float32 on the CPU is read")
    if not bool(torch.isfinite(weight).all()):
        raise CannotDecode("a weight holds NaN or infinity")
    half = weight.to(torch.float16)
    weight = half if torch.equal(half.float(), weight) else weight
    panels = weight.new_zeros(-(-weight.shape[0] // PANEL) * PANEL, weight.shape[1])
    panels[: len(weight)] = weight
    return panels.view(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()
