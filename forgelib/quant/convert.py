"""A causal language model with ternary inner layers: which layers, and how they are trained and packed.

    layers = convert(model)         every inner projection becomes a TernaryLinear that trains straight-through
    pack_model(model)               ... and a PackedTernaryLinear, for inference; the rest is rounded to float16

The rule: every plain nn.Linear, and GPT-2's Conv1D, that is not the output head, shares no weight with an embedding,
and is no gate or probe, which has few inputs or outputs, few bytes and much to say. Embeddings, head and norms stay.
"""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .linear import PackedTernaryLinear, SharedInput, TernaryLinear
from .packing import DIGITS, MAX_INPUTS
from .ternary import Rounding

#: A layer with fewer inputs or outputs is a gate or a probe.
SMALLEST = 64
#: RWKV's layers that the model divides in place between training and inference, and why they cannot be converted.
RESCALED_ENDS = (".attention.output", ".feed_forward.value")
RESCALED = "its model divides this weight in place before inference"
#: How many layers a refusal names.
NAMED = 4
#: How far float16 may take a tensor from what it is, as a share of its length. Rounding alone takes it half as far at
#: most (2^-11); beyond lies only what overflows, or is too small for float16's full precision (below 6.1e-5).
FLOAT16_ERROR = 1e-3


@dataclass(frozen=True)
class Layer:
    """A linear layer and what becomes of it: "ternary", "kept" (by the rule) or "refused" (it cannot be converted)."""

    name: str
    outputs: int
    inputs: int
    becomes: str
    reason: str = ""


def plan(model: nn.Module, keep: Collection[str] = (), smallest: int = SMALLEST) -> list[Layer]:
    """What `convert` does with each linear layer of the model, in the model's order. keep: names that stay as they are.

    Raises ValueError for a name in `keep` that is no linear layer.
    """
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    taken = {id(p) for module in (*ends, *tables) for p in module.parameters()}
    rescaled = any(hasattr(module, "layers_are_rescaled") for module in model.modules())
    layers = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D | TernaryLinear):
            continue
        inputs, outputs = module.weight.shape if isinstance(module, Conv1D) else reversed(module.weight.shape)
        if name in keep:
            becomes, reason = "kept", "asked for"
        elif id(module.weight) in taken:
            becomes, reason = "kept", "output head or embedding"
        elif min(inputs, outputs) < smallest:
            becomes, reason = "kept", f"a gate or probe: fewer than {smallest} inputs or outputs"
        else:
            reason = _why_impossible(module) or (RESCALED if rescaled and name.endswith(RESCALED_ENDS) else "")
            becomes = "refused" if reason else "ternary"
        layers.append(Layer(name, outputs, inputs, becomes, reason))
    unknown = set(keep) - {layer.name for layer in layers}
    if unknown:
        raise ValueError(f"keep = {sorted(unknown)}: no linear layers of this model")
    return layers


def _why_impossible(module: nn.Module) -> str:
    if type(module) not in (nn.Linear, Conv1D, TernaryLinear):
        return f"{type(module).__name__} is no plain nn.Linear: what it computes may be something else"
    if "weight" not in module._parameters:
        return "its weight is worked out of others (weight or spectral norm): remove the norm first"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "it has hooks, which the new layer would lose"
    if not module.weight.is_floating_point():
        return f"its weight is {module.weight.dtype}"
    if not bool(torch.isfinite(module.weight).all()):
        return "its weight holds NaN or infinity"
    inputs = module.weight.shape[0 if isinstance(module, Conv1D) else 1]
    return f"it has {inputs} inputs, more than {MAX_INPUTS}" if inputs > MAX_INPUTS else ""


def convert(
    model: nn.Module, rounding: Rounding | None = None, keep: Collection[str] = (), smallest: int = SMALLEST
) -> list[Layer]:
    """Make every layer that `plan` calls ternary a TernaryLinear, in place; the parameters are the model's own.

    Returns the plan. Raises ValueError, the model untouched, where no layer can be converted.
    """
    layers = plan(model, keep, smallest)
    if not any(layer.becomes == "ternary" for layer in layers):
        why = "; ".join(f"{layer.name}: {layer.reason}" for layer in layers[:NAMED]) or "it has no nn.Linear"
        why += f"; and {len(layers) - NAMED} more" * (len(layers) > NAMED)
        raise ValueError(f"{type(model).__name__} has no layer that can be ternary ({why})")
    for layer in layers:
        module = model.get_submodule(layer.name)
        if layer.becomes == "ternary" and not isinstance(module, TernaryLinear):
            replace(model, module, TernaryLinear.from_linear(module, rounding).train(module.training))
    return layers


def put_back(model: nn.Module, name: str) -> None:
    """Make a TernaryLinear the full-precision layer that it was, in place. Raises ValueError for another layer."""
    module = model.get_submodule(name)
    if not isinstance(module, TernaryLinear):
        raise ValueError(f"{name} is a {type(module).__name__}: only a TernaryLinear can be put back")
    replace(model, module, module.to_linear())


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` wherever the model has `old`: a layer used in several places stays one layer."""
    for parent in list(model.modules()):
        for name in [name for name, child in parent._modules.items() if child is old]:
            setattr(parent, name, new)


def pack_model(model: nn.Module, example: Tensor | None = None) -> nn.Module:
    """Pack every TernaryLinear for inference, in place, and round the other weights to float16 values.

    These stay float32 in memory, where a processor computes with them; a tensor that float16 cannot hold, because it
    overflows or mostly vanishes there, stays as it is. Layers that read one tensor are multiplied together from then
    on (`share_inputs` with `example`, token ids [1, T], by default the first eight). Raises ValueError where the model
    has no TernaryLinear.
    """
    ternary = [module for module in model.modules() if isinstance(module, TernaryLinear)]
    if not ternary:
        raise ValueError(f"{type(model).__name__} has no TernaryLinear: convert it first")
    packed = [module.pack() for module in ternary]  # all, before any is replaced: an error leaves the model whole
    for old, new in zip(ternary, packed, strict=True):
        replace(model, old, new)
    own = {t.data_ptr() for layer in packed for t in layer.buffers()}
    for tensor in model.state_dict().values():  # what is stored: rotary frequencies, made anew, stay exact
        if tensor.dtype == torch.float32 and tensor.data_ptr() not in own and fits_float16(tensor):
            tensor.copy_(tensor.to(torch.float16))
    model.eval().requires_grad_(False)
    model.save_pretrained = no_folder_of_transformers
    share_inputs(
        model, torch.arange(8)[None] % model.get_input_embeddings().weight.shape[0] if example is None else example
    )
    return model


def no_folder_of_transformers(*_, **__) -> None:
    """What a packed model has for save_pretrained: that would write packed codes, in whose place transformers would
    put random weights when it reads them."""
    raise ValueError("a packed model is written by forgelib.quant.save_packed, save_bitnet or save_gguf")


def share_inputs(model: nn.Module, example: Tensor) -> list[list[str]]:
    """Find packed layers that are given the very same tensors, as q, k and v, and let them share one call.

    The model runs once on `example`, token ids [1, T]. Returns the names of each group.
    """
    seen: dict[str, list[Tensor]] = defaultdict(list)
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, PackedTernaryLinear):
            module.shared = None

            def remember(module: nn.Module, inputs: tuple, name: str = name) -> None:
                seen[name].append((inputs[0], inputs[0]._version))

            handles.append(module.register_forward_pre_hook(remember))
    try:
        with torch.no_grad():
            model(input_ids=example, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    groups = defaultdict(list)
    for name, inputs in seen.items():
        groups[tuple((id(x), version) for x, version in inputs)].append(name)
    names = [group for group in groups.values() if len(group) > 1]
    for group in names:
        SharedInput([model.get_submodule(name) for name in group])
    return names


def fits_float16(tensor: Tensor) -> bool:
    """Whether float16 holds the tensor to `FLOAT16_ERROR` of its length. A few values may vanish beside larger ones."""
    error = tensor.to(torch.float16).to(tensor.dtype) - tensor
    moved, length = (torch.linalg.vector_norm(t, dtype=torch.float64) for t in (error, tensor))
    return bool(moved <= FLOAT16_ERROR * length)


def as_stored(tensor: Tensor) -> Tensor:
    """The tensor in float16 where that holds it exactly, else as it is."""
    half = tensor.to(torch.float16) if tensor.dtype in (torch.float32, torch.float64) else tensor
    return (half if torch.equal(half.to(tensor.dtype), tensor) else tensor).contiguous()


def sizes(model: nn.Module) -> list[dict]:
    """Bytes by part of a packed model, tied weights once: a row for each part with its weights, float32 bytes, stored
    bytes (as `save_packed` writes them, names aside) and resident bytes (in memory now).
    """
    rows: dict[str, dict] = {}
    counted: set[int] = set()
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, PackedTernaryLinear):
            weights, bias = module.out_features * module.in_features, module.out_features * (module.bias is not None)
            stored = -(-weights // DIGITS) + 4 * (module.stored_scales().numel() + bias)
            _add(rows, "ternary layers", weights, 4 * (weights + bias), stored, module.resident_bytes())
            continue
        kept = [t for name, t in module._buffers.items() if name not in module._non_persistent_buffers_set]
        for tensor in (*module.parameters(recurse=False), *kept):
            if tensor is not None and id(tensor) not in counted:
                counted.add(id(tensor))
                full = (4 if tensor.is_floating_point() else tensor.itemsize) * tensor.numel()
                _add(rows, _part(module, head), tensor.numel(), full, as_stored(tensor.detach()).nbytes, tensor.nbytes)
    return list(rows.values())


def _part(module: nn.Module, head: nn.Module | None) -> str:
    if isinstance(module, nn.Embedding):
        return "embeddings"
    if module is head:
        return "head"
    if "Norm" in type(module).__name__:
        return "norms"
    return "linear layers kept" if isinstance(module, nn.Linear | Conv1D) else "other"


def _add(rows: dict[str, dict], part: str, weights: int, full: int, stored: int, resident: int) -> None:
    row = rows.setdefault(
        part, {"part": part, "weights": 0, "float32 bytes": 0, "stored bytes": 0, "resident bytes": 0}
    )
    for key, value in zip(list(row)[1:], (weights, full, stored, resident), strict=True):
        row[key] += value
