"""Floor 2: ternary weights: rounding, packing, multiplying; whole models converted, stored and decoded."""

from .blueprint import Blueprint
from .convert import Layer, convert, pack_model, plan, put_back, share_inputs, sizes
from .decoder import CannotDecode, Decoder
from .export_bitnet import ExportRefused, check_bitnet, save_bitnet
from .export_gguf import KINDS as GGUF_KINDS
from .export_gguf import check_gguf, save_gguf
from .folder import PackedFolderError, load_packed, save_packed
from .linear import PackedTernaryLinear, SharedInput, TernaryLinear
from .native import PATHS
from .packing import from_base3, pack, to_base3, unpack
from .product import Operand, Operands, kernel_in_use, multiply, multiply_all
from .ternary import Rounding, round_activations, round_tokens, round_weight, ternarize

__all__ = [
    "GGUF_KINDS",
    "PATHS",
    "Blueprint",
    "CannotDecode",
    "Decoder",
    "ExportRefused",
    "Layer",
    "Operand",
    "Operands",
    "PackedFolderError",
    "PackedTernaryLinear",
    "Rounding",
    "SharedInput",
    "TernaryLinear",
    "check_bitnet",
    "check_gguf",
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
    "save_bitnet",
    "save_gguf",
    "save_packed",
    "share_inputs",
    "sizes",
    "ternarize",
    "to_base3",
    "unpack",
]
