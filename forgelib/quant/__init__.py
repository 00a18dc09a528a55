"""Floor 2: ternary weights: rounding, packing, multiplying; whole models converted, stored and decoded."""

from .blueprint import Blueprint
from .convert import Layer, convert, pack_model, plan, put_back, share_inputs, sizes
from .decoder import CannotDecode, Decoder
from .folder import PackedFolderError, load_packed, save_packed
from .linear import PackedTernaryLinear, SharedInput, TernaryLinear
from .native import PATHS
from .packing import from_base3, pack, to_base3, unpack
from .product import Operand, Operands, kernel_in_use, multiply, multiply_all
from .ternary import Rounding, round_activations, round_tokens, round_weight, ternarize

__all__ = [
    "PATHS",
    "Blueprint",
    "CannotDecode",
    "Decoder",
    "Layer",
    "Operand",
    "Operands",
    "PackedFolderError",
    "PackedTernaryLinear",
    "Rounding",
    "SharedInput",
    "TernaryLinear",
    "convert",
    "from_base3",
    "kernel_in_use",
    "load_packed",
    "multiply",
    "multiply_all",
    "pack",
    "pack_model",
    "plan",
    "put_back",
    "round_activations",
    "round_tokens",
    "round_weight",
    "save_packed",
    "share_inputs",
    "sizes",
    "ternarize",
    "to_base3",
    "unpack",
]
