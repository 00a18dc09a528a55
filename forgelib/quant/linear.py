"""Ternary layers: one that trains straight-through, and the packed one that it becomes for inference.

linear = TernaryLinear.from_linear(nn.Linear(512, 2048))     full-precision weight, rounded in every forward pass
packed = linear.pack()                                       2 bits a weight, int8 activations, no gradient
"""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .packing import pack, packed_shape, unpack
from .product import Operand, Operands, multiply, multiply_all
from .ternary import Rounding, round_activations, round_weight, ternarize


class TernaryLinear(nn.Linear):
    """x [..., K] -> [..., N] with weight [N, K] rounded to three values and x to int8, gradients straight through.

    `share` (0 to 1) is how much of the rounding is done: a warm-up raises it from 0, the layer as it was, to 1.
    It is an nn.Linear to all who look for the weight of one, such as QK-Clip.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, rounding: Rounding | None = None):
        nn.Module.__init__(self)  # nn.Linear's would draw weights
        self.weight, self.bias = weight, bias
        self.rounding, self.share = rounding or Rounding(), 1.0
        self.out_features, self.in_features = weight.shape
        self.transposed = False

    @classmethod
    def from_linear(cls, linear: nn.Linear | Conv1D, rounding: Rounding | None = None) -> Self:
        """The layer with the same parameters (not copies, so what is tied stays tied; GPT-2's Conv1D is transposed).

        Raises ValueError for a subclass with a forward of its own and for a weight that is no parameter (weight norm):
        it would be another layer, or never train.
        """
        if type(linear).forward not in (nn.Linear.forward, Conv1D.forward, cls.forward):
            raise ValueError(f"{type(linear).__name__} is no plain nn.Linear: what it computes may be something else")
        if "weight" not in linear._parameters:
            raise ValueError("the weight is worked out of others (weight or spectral norm): remove the norm first")
        if isinstance(linear, Conv1D):
            layer = cls(nn.Parameter(linear.weight.detach().t().contiguous()), linear.bias, rounding)
            layer.transposed = True
            return layer
        return cls(linear.weight, linear.bias, rounding)

    def to_linear(self) -> nn.Linear | Conv1D:
        """The full-precision layer again, of the kind it was made from, with these parameters: the put-back."""
        if self.transposed:
            linear = Conv1D(self.out_features, self.in_features)
            linear.weight = nn.Parameter(self.weight.detach().t().contiguous())
        else:
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
            linear.weight = self.weight
        linear.bias = self.bias
        return linear.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        if self.share == 0:
            return F.linear(x, self.weight, self.bias)
        return F.linear(
            round_activations(x, self.share), round_weight(self.weight, self.rounding, self.share), self.bias
        )

    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return float((ternarize(self.weight, self.rounding)[0] == 0).float().mean())

    def pack(self) -> "PackedTernaryLinear":
        """The inference layer. Raises ValueError for NaN or infinity in the weight or bias."""
        signs, scales = ternarize(self.weight, self.rounding)
        codes = pack((signs + 1).to(torch.uint8))
        bias = None if self.bias is None else self.bias.detach().float().clone()
        return PackedTernaryLinear(codes, scales, bias, self.out_features, self.in_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class PackedTernaryLinear(nn.Module):
    """x [..., K] -> [..., N] from packed weights. Buffers: codes uint8 [P, L, 64], scales and bias float32 [N].

    For inference: an x that asks for a gradient is refused. Layers of one `SharedInput` are multiplied together.
    """

    def __init__(self, codes: Tensor, scales: Tensor, bias: Tensor | None, out_features: int, in_features: int):
        super().__init__()
        check_packed(codes, scales, bias, out_features, in_features)
        self.out_features, self.in_features = out_features, in_features
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", bias)
        self._operand: Operand | None = None
        self.shared: SharedInput | None = None
        self.place = 0

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "a packed ternary layer has no gradient: call the model under torch.no_grad(), or train TernaryLinear"
            )
        if self.shared is not None and not x.is_inference():
            return self.shared.output(x, self.place)
        return multiply(self._operand or self.operand(), x)

    def operand(self) -> Operand:
        """The layer as the kernel reads it; made anew after the buffers were moved, loaded or assigned."""
        operand = self._operand
        if operand is None:
            operand = Operand(self.codes, self.scales, self.bias, self.out_features, self.in_features)
            self._operand = operand
        return operand

    @property
    def weight(self) -> Tensor:
        """The weight [N, K] in float32, unpacked now."""
        signs = unpack(self.codes, self.out_features, self.in_features).float() - 1
        return signs * self.scales.float()[:, None]

    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return float((unpack(self.codes, self.out_features, self.in_features) == 1).float().mean())

    def resident_bytes(self) -> int:
        """Bytes of the layer in memory: codes, scales, bias, and int8 weights where there is no kernel."""
        kept = sum(t.nbytes for t in (self.codes, self.scales, self.bias) if t is not None)
        return kept + (0 if self._operand is None else self._operand.extra_bytes())

    def stored_scales(self) -> Tensor:
        """The scales as they lie on disk: one where all are equal."""
        return self.scales[:1].clone() if bool((self.scales == self.scales[0]).all()) else self.scales

    def _forget(self) -> None:
        self._operand = None
        if self.shared is not None:
            self.shared.forget()

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name in ("codes", "scales", "bias"):
            self._forget()

    def _apply(self, *args, **kwargs):
        result = super()._apply(*args, **kwargs)
        self._forget()
        return result

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        """What is damaged is not taken, and told with the errors that torch raises at the end."""
        codes, *floats = (state_dict.get(prefix + name, getattr(self, name)) for name in ("codes", "scales", "bias"))
        try:
            scales, bias = (None if each is None else each.float() for each in floats)
            check_packed(codes, scales, bias, self.out_features, self.in_features)
            if codes.data_ptr() != self.codes.data_ptr():  # its own were looked at before
                unpack(codes, self.out_features, self.in_features)
        except ValueError as error:
            rest[-1].append(f"{prefix.removesuffix('.') or 'the packed layer'}: {error}")
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self._forget()

    def __getstate__(self) -> dict:
        """Addresses are this process's: copies make their own."""
        return {**self.__dict__, "_operand": None}

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


class SharedInput:
    """Packed layers that are always given the very same tensor, as q, k and v: whichever is asked first, one call
    rounds x once and multiplies all, and the others' outputs wait for them.

    They wait only for the same tensor object at the version that torch counts, so what a layer returns does not depend
    on this. A change behind torch's back (x.data, numpy) is not counted: what waits then is of x as it was. So it is
    where a buffer of a layer is changed in place between two of them; assigned or loaded, it counts at once.
    Any thread may ask: an output that another took first is worked out again.
    """

    def __init__(self, layers: list[PackedTernaryLinear]):
        if len(layers) < 2 or len({layer.in_features for layer in layers}) != 1:
            raise ValueError(f"layers of {[layer.in_features for layer in layers]} inputs cannot share one input")
        self.layers = layers
        self.forget()
        for place, layer in enumerate(layers):
            layer.shared, layer.place = self, place

    def forget(self) -> None:
        """Drop what waits, and the addresses."""
        self._operands: Operands | None = None
        self._waiting: tuple[Tensor, int, dict[int, Tensor]] | None = None

    def output(self, x: Tensor, place: int) -> Tensor:
        """What layer `place` makes of x [..., K]."""
        waiting = self._waiting
        if waiting is not None and waiting[0] is x and waiting[1] == x._version:
            outputs = waiting[2]
            y = outputs.pop(place, None)  # in one step: of two threads only one gets it
            if y is not None:
                if not outputs:
                    self._waiting = None
                return y
        operands, version = self._operands, x._version
        if operands is None:
            operands = self._operands = Operands([layer.operand() for layer in self.layers])
        outputs = dict(enumerate(multiply_all(operands, x)))
        y = outputs.pop(place)
        self._waiting = x, version, outputs
        return y

    def __getstate__(self) -> dict:
        return {"layers": self.layers, "_operands": None, "_waiting": None}


def check_packed(codes: Tensor, scales: Tensor, bias: Tensor | None, outputs: int, inputs: int) -> None:
    """Raise ValueError where these are no packed layer: shapes, types, scales or bias that are not finite."""
    shape = packed_shape(outputs, inputs)
    if codes.dtype != torch.uint8 or tuple(codes.shape) != shape:
        raise ValueError(
            f"codes of {outputs} x {inputs} are uint8 {list(shape)}, not {codes.dtype} {list(codes.shape)}"
        )
    for name, part in (("scales", scales), ("bias", bias)):
        if part is None:
            continue
        if part.dtype != torch.float32 or tuple(part.shape) != (outputs,):
            raise ValueError(
                f"{name} of {outputs} outputs are float32 [{outputs}], not {part.dtype} {list(part.shape)}"
            )
        if not bool(torch.isfinite(part).all()):
            raise ValueError(f"{name} hold NaN or infinity: the layer is damaged")
    if bool((scales < 0).any()):
        raise ValueError("a scale is below 0: the layer is damaged")
