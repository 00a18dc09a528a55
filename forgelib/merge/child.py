"""A child after a merge: whether it is sound, and how far it lies from its parents and from their trunk."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from forgelib.core.gates import Check, Gate
from forgelib.core.rng import stream

Weights = Mapping[str, Tensor]
#: An element is off when it differs from float64 by more than this share of the tensor's largest magnitude, and so many
#: of a tensor's may be: where TIES elects a sign by masses that are equal but for rounding, the sign may flip.
TOLERANCE, SHARE_OFF = 1e-5, 1e-4


@dataclass(frozen=True)
class Report:
    """The gate that a child must pass, and rows for a table of parents against child (plain dicts)."""

    gate: Gate
    rows: list[dict]

    @property
    def passed(self) -> bool:
        """Whether every check that was asked for passed."""
        return self.gate.passed


@torch.no_grad()
def check_child(
    child: Weights,
    parents: Sequence[Weights],
    base: Weights | None = None,
    recompute: Callable[[str], Tensor] | None = None,
    forward: Callable[[Weights], Tensor] | None = None,
    reload: bool = True,
    samples: int = 4,
    seed: int = 0,
    labels: Sequence[str] = (),
) -> Report:
    """Look a child over; what cannot be asked (no `recompute`, no `forward`) is left out of the gate.

    Args:
        base: the trunk, for the distances in the rows.
        recompute: from a tensor's name to what it should be, in float64 (`Recipe.in_float64`); for `samples` names.
        forward: runs the child on some input and returns its output, such as logits; it must be finite throughout.
        reload: save the child to a temporary folder and read it back, bit for bit.
        labels: what to call the parents in the rows.
    """
    checks = [_finite(child), _spread(child, parents)]
    if recompute is not None:
        checks.append(_as_in_float64(child, recompute, _sample(child, samples, seed)))
    if forward is not None:
        checks.append(_forward(child, forward))
    if reload:
        checks.append(_reloaded(child))
    names = [*labels, *(f"parent {i}" for i in range(len(labels), len(parents)))]
    models = dict(zip(names, parents, strict=True)) | {"child": child}
    advice = "Replace the child by the plain mean of its parents (Linear), and look at its genes."
    return Report(Gate("child", checks, advice), [_row(name, model, child, base) for name, model in models.items()])


def _once(child: Weights) -> Iterator[tuple[str, Tensor]]:
    """Each floating-point tensor with one of its names; tied names give one."""
    seen = set()
    for name, tensor in child.items():
        key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset()) if isinstance(child, dict) else name
        if tensor.is_floating_point() and tensor.numel() and key not in seen:
            seen.add(key)
            yield name, tensor


def _finite(child: Weights) -> Check:
    broken = [name for name, tensor in _once(child) if not bool(torch.isfinite(tensor).all())]
    return Check("tensors with NaN or infinity", len(broken), 0, "<=", note=_first(broken))


def _spread(child: Weights, parents: Sequence[Weights]) -> Check:
    flat = [n for n, t in _once(child) if _is_constant(t) and any(not _is_constant(parent[n]) for parent in parents)]
    return Check("tensors that lost all variance", len(flat), 0, "<=", note=_first(flat))


def _is_constant(tensor: Tensor) -> bool:
    low, high = torch.aminmax(tensor)
    return bool(low == high)


def _sample(child: Weights, samples: int, seed: int) -> list[str]:
    names = [name for name, _ in _once(child)]
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(stream(seed, "check_child")))
    return [names[i] for i in order[:samples]]


def _as_in_float64(child: Weights, recompute: Callable[[str], Tensor], names: Sequence[str]) -> Check:
    worst, where = 0.0, ""
    for name in names:
        wanted, found = recompute(name).double(), child[name].double()
        rounding = torch.finfo(child[name].dtype).eps if child[name].dtype != torch.float64 else 0.0
        limit = max(TOLERANCE, rounding) * float(wanted.abs().max())
        off = 1.0 - float(((found - wanted).abs() <= limit).double().mean())
        if off > worst:
            worst, where = off, name
    return Check("share of elements off float64", worst, SHARE_OFF, "<=", note=where)


def _forward(child: Weights, forward: Callable[[Weights], Tensor]) -> Check:
    name = "numbers of the forward pass that are not finite"
    try:
        output = forward(child)
    except Exception as error:  # whatever it is, this child cannot be used
        return Check(name, float("nan"), 0, "<=", note=f"{type(error).__name__}: {error}")
    return Check(name, int((~torch.isfinite(output)).sum()), 0, "<=")


def _reloaded(child: Weights) -> Check:
    kept, leading = {}, {}
    for name, tensor in child.items():
        key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset()) if tensor.numel() else name
        leading[name] = kept.setdefault(key, name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file({name: child[name].contiguous() for name in kept.values()}, file)
        with safe_open(file, framework="pt") as saved:
            changed = [n for n, t in child.items() if not _same_bits(t, saved.get_tensor(leading[n]))]
    return Check("tensors changed by saving", len(changed), 0, "<=", note=_first(changed))


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _row(name: str, model: Weights, child: Weights, base: Weights | None) -> dict:
    """Norm, distance to the child; from the trunk: distance, share of weights changed, cosine with the child."""
    squares = dict.fromkeys(("own", "to child", "to trunk", "child's", "product"), 0.0)
    changed = size = 0
    for key, tensor in _once(child):
        ours, childs = model[key].double(), tensor.double()
        squares["own"] += float(ours.square().sum())
        squares["to child"] += float((ours - childs).square().sum())
        size += ours.numel()
        if base is not None:
            trunk = base[key].double()
            changed += int((ours != trunk).sum())
            squares["to trunk"] += float((ours - trunk).square().sum())
            squares["child's"] += float((childs - trunk).square().sum())
            squares["product"] += float(((ours - trunk) * (childs - trunk)).sum())
    row = {"model": name, "norm": squares["own"] ** 0.5, "distance to child": squares["to child"] ** 0.5}
    if base is not None:
        lengths = (squares["to trunk"] * squares["child's"]) ** 0.5
        row["distance to trunk"] = squares["to trunk"] ** 0.5
        row["changed weights"] = changed / size if size else 0.0
        row["cosine with child"] = squares["product"] / lengths if lengths else None
    return row


def _first(names: Sequence[str]) -> str:
    return f"first: {names[0]}" if names else ""
