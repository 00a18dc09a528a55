"""Weights as a merge sees them: a mapping from names to tensors, read when asked, walked one tensor at a time.

A dict is taken as weights in memory; two names of one tensor in it are tied. Any other mapping (`read_lazily`) is taken
to read a tensor anew each time it is asked, so that only what is being merged is in memory.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

Weights = Mapping[str, Tensor]
#: Elements that are worked on at once: few enough for the cache, enough to make the calls cheap (measured).
PIECE = 2**17
#: Bytes read from a file before it is opened anew.
READ_OPEN = 4 * 2**20
INDEX = "model.safetensors.index.json"


class MergeRefused(ValueError):
    """These models cannot be merged; the text says what differs or is broken, where, and what to do."""


class LazyWeights(Weights):
    """The tensors of some .safetensors files by name; a tensor is read when it is asked for, and never kept.

    All pages read of a file count as this process's memory for as long as the file is open, so after every READ_OPEN
    bytes it is opened anew.
    """

    def __init__(self, files: Sequence[Path]):
        self._file_of: dict[str, Path] = {}
        self._opened: dict[Path, tuple[object, int]] = {}
        for file in files:
            for name in _open(file).keys():  # noqa: SIM118 (a safetensors handle is no mapping)
                if name in self._file_of:
                    raise MergeRefused(f"{file} holds {name}, which another file of the model holds too. Save it anew.")
                self._file_of[name] = file

    def __getitem__(self, name: str) -> Tensor:
        file = self._file_of[name]
        handle, read = self._handle(file)
        del self._opened[file]
        tensor = handle.get_tensor(name)
        if read + tensor.nbytes < READ_OPEN:
            self._opened[file] = handle, read + tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __contains__(self, name: object) -> bool:
        return name in self._file_of

    def header(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and type of a tensor as the file's header has them; the tensor itself is not read."""
        part = self._handle(self._file_of[name])[0].get_slice(name)
        return tuple(part.get_shape()), str(part.get_dtype())

    def _handle(self, file: Path) -> tuple[object, int]:
        """The open file and how many bytes were read from it."""
        if file not in self._opened:
            self._opened[file] = _open(file), 0
        return self._opened[file]


def read_lazily(path: Path | str) -> LazyWeights:
    """The weights of a model folder or of one .safetensors file, sharded or not, as a mapping that reads when asked.

    Raises MergeRefused naming the file where one is missing, truncated or no safetensors file.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".safetensors":
        return LazyWeights([path])
    if (path / INDEX).is_file():
        try:
            shards = sorted(set(json.loads((path / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise MergeRefused(f"{path / INDEX} is no index of shards ({error!r}). Save the model anew.") from None
        return LazyWeights([path / shard for shard in shards])
    if (path / "model.safetensors").is_file():
        return LazyWeights([path / "model.safetensors"])
    raise MergeRefused(
        f"{path} holds no model.safetensors: nothing to merge there. Give the folder that save_pretrained wrote; "
        "a .bin or .pt model is not opened, save it as .safetensors first."
    )


def _open(file: Path):
    if not file.is_file():
        raise MergeRefused(f"{file} is missing though the model's index lists it. Copy the model again.")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise MergeRefused(f"{file} is damaged or cut short ({error}). Copy or save the model again.") from None


def tied_names(weights: Weights) -> list[tuple[str, ...]]:
    """The names of each tensor, tied ones together, each tensor's leading name first; in the order of `weights`.

    The leading name is the last of the alphabet, which is the embedding's and not the head's (lm_head.weight,
    model.embed_tokens.weight), the one that save_pretrained keeps. So a tied tensor merges the same from a dict and
    from a file, in whatever order the names come.
    """
    groups: dict[object, list[str]] = {}
    for name in weights:
        key: object = name
        if isinstance(weights, dict) and weights[name].numel():
            t = weights[name]
            key = (t.untyped_storage().data_ptr(), t.storage_offset(), tuple(t.shape), t.stride(), t.dtype)
        groups.setdefault(key, []).append(name)
    return [tuple(sorted(names, reverse=True)) for names in groups.values()]


def same_names(models: Sequence[Weights]) -> list[tuple[str, ...]]:
    """`tied_names`, the same in all models. Raises MergeRefused naming the first tensor that is not in all of them."""
    first = set(models[0])
    for index, model in enumerate(models[1:], start=1):
        for name in sorted(first ^ set(model)):
            has, lacks = (0, index) if name in first else (index, 0)
            raise MergeRefused(f"model {has} has a tensor {name}, model {lacks} has not: they are of different build.")
    ties = [sorted(tied_names(model)) for model in models if isinstance(model, dict)]
    for names in ties[1:]:
        if names != ties[0]:
            odd = min(set(names) ^ set(ties[0]))
            raise MergeRefused(f"{' and '.join(odd)}: tied in one model, not in another. Tie or untie it in all.")
    groups = tied_names(models[0])
    in_memory = next((model for model in models if isinstance(model, dict)), None)
    return groups if in_memory is None or in_memory is models[0] else tied_names(in_memory)


@torch.no_grad()
def walk(models: Sequence[Weights], merge: Callable[[str, list[Tensor]], Tensor]) -> dict[str, Tensor]:
    """The child whose tensors are merge(name, [the tensor of that name in each model]), one tensor after the other.

    The child has the first model's types and the order of its names. Tied names are merged once and share one tensor.
    What is not floating point is no matter of averages: it must be equal in all models and is copied. Raises
    MergeRefused for different names, ties or shapes and for integers that differ.
    """
    child = {}
    for names in same_names(models):
        tensors = [model[names[0]] for model in models]
        refuse_other_shapes(names[0], tensors)
        _refuse_untied(names, models, tensors)
        if all(t.is_floating_point() for t in tensors):
            merged = merge(names[0], tensors).to(tensors[0].dtype)
        elif all(t.dtype == tensors[0].dtype and torch.equal(t, tensors[0]) for t in tensors):
            merged = tensors[0].clone()
        else:
            raise MergeRefused(
                f"{names[0]} is {tensors[0].dtype} and differs between the models: only floating-point tensors have a "
                "mean. Make it equal in all models, or leave it out of the merge."
            )
        child.update(dict.fromkeys(names, merged))
        del tensors, merged
    return {name: child[name] for name in models[0]}


def refuse_other_shapes(name: str, tensors: Sequence[Tensor]) -> None:
    """Raise MergeRefused when the tensors of this name are not of one shape."""
    shapes = [tuple(t.shape) for t in tensors]
    if len(set(shapes)) > 1:
        raise MergeRefused(f"{name} has shapes {', '.join(map(str, shapes))}: models of different size.")


def _refuse_untied(names: tuple[str, ...], models: Sequence[Weights], tensors: list[Tensor]) -> None:
    for name in names[1:]:
        for model, tensor in zip(models, tensors, strict=True):
            if not isinstance(model, dict) and not torch.equal(model[name], tensor):
                raise MergeRefused(f"{name} and {names[0]}: tied in one model, not in another. Tie or untie it in all.")


def working_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """float64 where a tensor has it, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def new_tensor(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of any content. numpy asks for huge pages, which makes a fresh 100 MB four times as fast to fill."""
    return torch.from_numpy(np.empty(tuple(shape), np.float64 if dtype == torch.float64 else np.float32))


def by_pieces(function: Callable[..., object], tensors: Sequence[Tensor], result: Tensor | None = None) -> Tensor:
    """A float32 (float64) tensor, written piece after piece by function(out, *pieces of `tensors`).

    result: where to write, which may be one of `tensors`; None means a new tensor.
    """
    dtype = working_dtype(tensors)
    if result is None:
        result = new_tensor(tensors[0].shape, dtype)
    flat = [t.reshape(-1).split(PIECE) for t in (result, *tensors)]
    for out, *pieces in zip(*flat, strict=True):
        function(out, *(piece.to(dtype) for piece in pieces))
    return result
