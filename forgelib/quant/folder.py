"""A packed model as a folder: small, checked in every part before anything of it is used.

    config.json               the architecture, as transformers writes it
    ternary.safetensors       <layer>.codes in base 3 (5 weights a byte), <layer>.scales and <layer>.bias in float32,
                              a scale an output, or one where all are equal
    rest.safetensors          embeddings, head, norms in float16 where that holds them exactly, tied ones once
    packed.json               names and shapes of the layers, types in memory, ties, config.json's hash; written last

config.json decides what is computed with the same weights, so it is sealed by that hash. What still is a valid weight
after somebody changed it, only a hash can tell too: an artifact (`core.artifacts`) has one for every file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, GenerationConfig

from forgelib.core.artifacts import file_sha256

from .convert import as_stored, no_folder_of_transformers, replace
from .linear import PackedTernaryLinear, SharedInput, check_packed
from .packing import from_base3, pack, packed_shape, to_base3, unpack

TERNARY, REST, INDEX, CONFIG = "ternary.safetensors", "rest.safetensors", "packed.json", "config.json"
FLOATS = ("float64", "float32", "float16", "bfloat16")
Stored = Literal[*FLOATS, "int64", "int32", "int16", "int8", "uint8", "bool"]


class PackedFolderError(ValueError):
    """A folder cannot be used; the text names the file and what is wrong. Nothing of it was loaded."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredLayer(_Strict):
    """A ternary layer in the index."""

    outputs: int = Field(ge=1)
    inputs: int = Field(ge=1)
    bias: bool


class Index(_Strict):
    """packed.json. dtypes: types in memory of what lies in rest.safetensors; tied: other name -> name there;
    config_sha256: of config.json, None in folders from before it was written."""

    format: Literal["forge-ternary"] = "forge-ternary"
    version: Literal[1] = 1
    layers: dict[str, StoredLayer] = Field(min_length=1)
    shared_inputs: list[list[str]]
    dtypes: dict[str, Stored]
    tied: dict[str, str]
    config_sha256: str | None = None

    @model_validator(mode="after")
    def _float64_throughout_or_not_at_all(self) -> Self:
        floats = {name: dtype for name, dtype in self.dtypes.items() if dtype in FLOATS}
        wide = [name for name, dtype in floats.items() if dtype == "float64"]
        if wide and len(wide) < len(floats):
            raise ValueError(f"{wide[0]} is float64 and others are not: such a model cannot multiply")
        return self


def save_packed(model: nn.Module, folder: Path | str) -> Path:
    """Write a model that `pack_model` made into a folder. Returns the folder.

    Raises ValueError where the model has no packed layer, or a tensor of it holds NaN or infinity.
    """
    folder = Path(folder)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, PackedTernaryLinear)}
    if not layers:
        raise ValueError(f"{type(model).__name__} has no packed layer: use convert and pack_model first")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    ternary = {f"{name}.{part}": t for name, layer in layers.items() for part, t in _stored_parts(layer).items()}
    rest, dtypes, tied = rest_of(model)
    save_file(ternary, folder / TERNARY)
    save_file(rest, folder / REST)
    model.config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    names = {layer: name for name, layer in layers.items()}
    groups = {id(layer.shared): layer.shared.layers for layer in layers.values() if layer.shared is not None}
    index = Index(
        layers={
            name: StoredLayer(outputs=m.out_features, inputs=m.in_features, bias=m.bias is not None)
            for name, m in layers.items()
        },
        shared_inputs=[[names[layer] for layer in group] for group in groups.values()],
        dtypes=dtypes,
        tied=tied,
        config_sha256=file_sha256(folder / CONFIG),
    )
    (folder / INDEX).write_text(index.model_dump_json(indent=1))
    return folder


def _stored_parts(layer: PackedTernaryLinear) -> dict[str, Tensor]:
    check_packed(layer.codes, layer.scales, layer.bias, layer.out_features, layer.in_features)
    codes = to_base3(unpack(layer.codes, layer.out_features, layer.in_features))
    parts = {"codes": codes, "scales": layer.stored_scales()}
    return parts if layer.bias is None else {**parts, "bias": layer.bias}


def rest_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Tensors outside the packed layers as they are stored, their types in memory, and which names are tied."""
    everywhere = [n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, PackedTernaryLinear)]
    packed = tuple(f"{name}." for name in everywhere)
    rest, dtypes, tied, first = {}, {}, {}, {}
    for name, tensor in model.state_dict().items():
        if name.startswith(packed):
            continue
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
        if tensor.numel() and place in first:
            tied[name] = first[place]
            continue
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} holds NaN or infinity: go back to the last good checkpoint")
        first[place] = name
        dtypes[name] = str(tensor.dtype).removeprefix("torch.")
        rest[name] = as_stored(tensor)
    return rest, dtypes, tied


def load_packed(folder: Path | str) -> nn.Module:
    """The model of a folder that `save_packed` wrote, with equal logits, ready for inference.

    Raises PackedFolderError, with nothing loaded, for a file that is missing, cut short or no such file; an index that
    does not fit; tensors too many, missing, or of another shape or type; bytes that are no codes; scales or other
    values that are NaN or infinite; a config.json that is not the one written, or builds another model or none.
    """
    folder = Path(folder)
    index = _read_index(folder / INDEX)
    _check_seal(folder / CONFIG, index)
    layers = _read_layers(folder / TERNARY, index)
    rest = _read_rest(folder / REST, index)
    model = _build(folder)
    modules = dict(model.named_modules())
    for name, packed in layers.items():
        old = modules.get(name)
        have = None if old is None or not hasattr(old, "weight") else sorted(old.weight.shape)
        if have != sorted((packed.out_features, packed.in_features)):
            raise PackedFolderError(f"{folder}: config.json builds no layer {name} of the size in {INDEX} (has {have})")
    for name, packed in layers.items():
        replace(model, modules[name], packed)
    everywhere = {n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, PackedTernaryLinear)}
    state = {f"{name}.{part}": t for name, m in everywhere.items() for part, t in m.state_dict().items()}
    state |= rest | {other: rest[name] for other, name in index.tied.items()}
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise PackedFolderError(f"{folder / REST} does not fit the model of config.json: {error}") from None
    _tie(model, index.tied)
    for group in index.shared_inputs:
        SharedInput([layers[name] for name in group])
    model.save_pretrained = no_folder_of_transformers
    return model.eval().requires_grad_(False)


def _read_index(file: Path) -> Index:
    if not file.is_file():
        raise PackedFolderError(f"{file} is missing: no packed model lies there, or it was not written to its end")
    try:
        index = Index.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise PackedFolderError(f"{file}: {'.'.join(map(str, first['loc'])) or 'text'}: {first['msg']}") from None
    unknown = [n for group in index.shared_inputs for n in group if n not in index.layers]
    unknown += [n for n in index.tied.values() if n not in index.dtypes]
    if unknown:
        raise PackedFolderError(f"{file} names {unknown[0]}, which it does not list")
    for group in index.shared_inputs:
        if len(group) < 2 or len(group) != len(set(group)) or len({index.layers[n].inputs for n in group}) > 1:
            raise PackedFolderError(f"{file}: shared_inputs {group}: at least two different layers of one width")
    return index


def _check_seal(file: Path, index: Index) -> None:
    if not file.is_file():
        raise PackedFolderError(f"{file} is missing")
    if index.config_sha256 not in (None, file_sha256(file)):
        raise PackedFolderError(
            f"{file} is not the one that was written with the folder: put that one back or write the folder anew (a "
            f"change that is meant: take config_sha256 out of {INDEX})"
        )


def _read(file: Path, names: Mapping[str, object]) -> dict[str, Tensor]:
    """Every tensor of a .safetensors file, which must hold these names and no other."""
    if not file.is_file():
        raise PackedFolderError(f"{file} is missing")
    try:
        with safe_open(file, framework="pt") as opened:
            found = set(opened.keys())
            for name in sorted(found ^ set(names)):
                what = "is missing" if name in names else "is there though the index does not list it"
                raise PackedFolderError(f"{file}: {name} {what}")
            return {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise PackedFolderError(f"{file} is damaged or cut short ({error})") from None


def _read_layers(file: Path, index: Index) -> dict[str, PackedTernaryLinear]:
    parts = {n: ("codes", "scales", *(("bias",) if stored.bias else ())) for n, stored in index.layers.items()}
    tensors = _read(file, {f"{name}.{part}": None for name in parts for part in parts[name]})
    layers = {}
    for name, stored in index.layers.items():
        scales, bias = tensors[f"{name}.scales"], tensors.get(f"{name}.bias")
        try:
            packed_shape(stored.outputs, stored.inputs)
            codes = pack(from_base3(tensors[f"{name}.codes"], stored.outputs, stored.inputs))
            if scales.shape == (1,):
                scales = scales.repeat(stored.outputs)
            layers[name] = PackedTernaryLinear(codes, scales, bias, stored.outputs, stored.inputs)
        except ValueError as error:
            raise PackedFolderError(f"{file}: {name}: {error}") from None
    return layers


def _read_rest(file: Path, index: Index) -> dict[str, Tensor]:
    rest = {}
    for name, tensor in _read(file, index.dtypes).items():
        dtype = getattr(torch, index.dtypes[name])
        halved = tensor.dtype == torch.float16 and dtype in (torch.float32, torch.float64)  # as `as_stored` does
        if tensor.dtype != dtype and not halved:
            raise PackedFolderError(f"{file}: {name} is {tensor.dtype}, the index says {index.dtypes[name]!r}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise PackedFolderError(f"{file}: {name} holds NaN or infinity")
        rest[name] = tensor.to(dtype)
    return rest


def _build(folder: Path) -> nn.Module:
    """The model of config.json with new weights. Wrong fields raise anything in transformers, so all is caught."""
    file, generation = folder / CONFIG, folder / "generation_config.json"
    try:
        kind = json.loads(file.read_bytes()).get("model_type")
        if kind == "cognate" and kind not in CONFIG_MAPPING:
            raise ValueError("a Cognate needs `import forgelib.models` first")
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, trust_remote_code=False))
    except Exception as error:
        raise PackedFolderError(f"{file} builds no model ({_in_a_line(error)})") from error
    if generation.is_file():
        try:
            model.generation_config = GenerationConfig.from_pretrained(folder)
        except Exception as error:
            raise PackedFolderError(f"{generation} is damaged ({_in_a_line(error)})") from error
    return model


def _in_a_line(error: Exception) -> str:
    """What another library says, with the kind of error: the text alone may be a name or nothing."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _tie(model: nn.Module, tied: Mapping[str, str]) -> None:
    """Make each pair of names one parameter again."""
    for other, name in tied.items():
        (to, to_name), (source, source_name) = (path.rpartition(".")[::2] for path in (other, name))
        setattr(model.get_submodule(to), to_name, getattr(model.get_submodule(source), source_name))
