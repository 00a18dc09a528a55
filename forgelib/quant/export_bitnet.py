"""A packed model as a Hugging Face folder in transformers' `bitnet` format: plain transformers reads it, without us.

    config.json           quantization_config: quant_method bitnet, linear_class bitlinear
    model.safetensors     <layer>.weight uint8 [N / 4, K], <layer>.weight_scale [1]; the rest in float16
                          where that is exact

Four rows share a byte: row n lies in byte row n mod (N / 4), in bits 2 (n div (N / 4)), as sign + 1. weight_scale is
1 / scale: transformers rounds activations to int8 a token as we do and divides the sums, the same integers as ours, by
both scales. Only the last products are rounded in another order, so logits are equal up to float32's rounding, but for
a token now and then where that last bit decides how an activation is rounded to int8: its logits differ by hundredths.

It unpacks a weight anew in every forward pass: small in memory, and slow. Its other class, autobitlinear, would keep
unpacked weights, but leaves every float16 tensor of the file float16 next to float32 ones, and then cannot multiply.

The first forward pass asks for a C++ compiler, because transformers compiles the unpacking (TORCH_COMPILE_DISABLE=1
does without); loading asks for accelerate.
"""

import copy
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.integrations.bitnet import VALUES_PER_ITEM, pack_weights

from .folder import rest_of
from .linear import PackedTernaryLinear, TernaryLinear
from .packing import unpack


class ExportRefused(ValueError):
    """The other engine could not read this model as it is; the text names what it does not know. Nothing is written."""


def save_bitnet(model: nn.Module, folder: Path | str, tokenizer=None) -> Path:
    """Write a model that `pack_model` made into a folder for `AutoModelForCausalLM.from_pretrained`; returns it.

    Raises ExportRefused for an architecture that transformers does not bring itself, a layer that is no nn.Linear
    there, outputs that are no multiple of 4, a scale for each row: the format has one for each layer, or weights used
    in several places that transformers would not tie again.
    """
    folder, layers = Path(folder), packed_layers(model)
    check_bitnet(model)
    rest, _, tied = rest_of(model)
    tensors = {name: tensor for name, tensor in rest.items() if name not in tied}
    for name, layer in layers.items():
        tensors |= {f"{name}.{part}": tensor for part, tensor in _stored(layer).items()}
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.config)
    config.dtype = torch.float32
    config.architectures = [type(model).__name__]
    config.quantization_config = {
        "quant_method": "bitnet",
        "linear_class": "bitlinear",
        "modules_to_not_convert": [n for n, m in model.named_modules() if isinstance(m, nn.Linear)],
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def packed_layers(model: nn.Module) -> dict[str, PackedTernaryLinear]:
    """The packed layers by name. Raises ValueError where there are none."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, PackedTernaryLinear)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no packed layer: use convert and pack_model first")
    return layers


def _stored(layer: PackedTernaryLinear) -> dict[str, Tensor]:
    signs = unpack(layer.codes, layer.out_features, layer.in_features).to(torch.int8) - 1
    scale = layer.scales[:1]
    inverse = 1 / torch.where(scale == 0, 1.0, scale)  # with scale 0 every sign is 0
    parts = {"weight": pack_weights(signs), "weight_scale": inverse}
    return parts if layer.bias is None else {**parts, "bias": layer.bias}


def check_bitnet(model: nn.Module) -> None:
    """Raise ExportRefused where `save_bitnet` would, for a packed model or one that is only converted yet."""
    if not type(model).__module__.startswith("transformers."):
        raise ExportRefused(
            f"bitnet: plain transformers has no architecture {model.config.model_type!r} ({type(model).__name__}), so "
            "it could not read the folder; use the packed folder, which forgelib reads"
        )
    ternary = ternary_layers(model)
    for name in model.all_tied_weights_keys:
        if name.rpartition(".")[0] in ternary:
            raise ExportRefused(f"bitnet: {name} is tied to another, and transformers ties no packed weights")
    refuse_shared(model, "bitnet", model.all_tied_weights_keys)
    with torch.device("meta"):
        plain = dict(AutoModelForCausalLM.from_config(model.config).named_modules())
    for name, layer in ternary.items():
        kind, per_row = type(plain[name]), f"bitnet: {name} has a scale for each row, the format one for each layer"
        if kind is not nn.Linear:
            raise ExportRefused(f"bitnet: {name} is a {kind.__name__}: transformers replaces nn.Linear only")
        if layer.out_features % VALUES_PER_ITEM:
            raise ExportRefused(
                f"bitnet: {name} has {layer.out_features} outputs: 4 must divide them, four share a byte"
            )
        if isinstance(layer, TernaryLinear) and layer.rounding.per_row:
            raise ExportRefused(f"{per_row}: quantize with per_row=False")
        if isinstance(layer, PackedTernaryLinear) and layer.stored_scales().numel() > 1:
            raise ExportRefused(f"{per_row}: quantize with per_row=False")


def refuse_shared(model: nn.Module, engine: str, tied: Collection[str]) -> None:
    """Raise ExportRefused where weights are used in several places, but for the names that the engine ties itself."""
    first = {}
    for name, tensor in model.state_dict().items():
        other = first.setdefault((tensor.data_ptr(), tuple(tensor.shape), tensor.dtype), name)
        if tensor.numel() and name != other and not {name, other} & set(tied):
            raise ExportRefused(
                f"{engine}: {name} is {other} used a second time, and there each is its own; use the packed folder"
            )


def ternary_layers(model: nn.Module) -> dict[str, TernaryLinear | PackedTernaryLinear]:
    """The ternary layers by name, packed or not."""
    return {name: m for name, m in model.named_modules() if isinstance(m, TernaryLinear | PackedTernaryLinear)}
