"""Floor 2: ternary weights: rounding them, packing them, multiplying with them, converting and storing a model."""

from .linear import PackedTernaryLinear, SharedInput, TernaryLinear
from .native import PATHS
from .packing import from_base3, pack, to_base3, unpack
from .product import Operand, Operands, kernel_in_use, multiply, multiply_all
from .ternary import Rounding, round_activations, round_tokens, round_weight, ternarize

__all__ = [
    "PATHS",
    "Operand",
    "Operands",
    "PackedTernaryLinear",
    "Rounding",
    "SharedInput",
    "TernaryLinear",
    "from_base3",
    "kernel_in_use",
    "multiply",
    "multiply_all",
    "pack",
    "round_activations",
    "round_tokens",
    "round_weight",
    "ternarize",
    "to_base3",
    "unpack",
]
