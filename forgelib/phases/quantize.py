"""Phase 4: a model's layers become ternary one after the other, and what that costs is measured on real activations.

    for record in quantize(model, calibration, config):
        ...

Every layer is converted first and left as it was (share 0). Then, in the model's order, each is rounded, and on the
calibration is measured: its error on what it reads at that moment, errors of the layers before included; the loss
before and after; and its cost, the rise of the loss where it alone is ternary. In a small model the loss of many
rounded layers says nothing of one: it goes up to that of guessing, and further layers may lower it. The cost does, so
the rule goes by it: a layer that costs more than `put_back` nats a token is put back.

`fall_back` is the conservative end: where quality, as the caller measures it, dropped too far, the costliest layers are
put back until it did not. It is for a model that was only rounded: what was put back is then the parent's.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgelib.quant import Rounding, TernaryLinear, convert, put_back, round_activations, round_weight
from forgelib.quant.convert import SMALLEST

Batch = tuple[Tensor, Tensor]  # input_ids and labels [B, T]
#: Quality by category, each positive and the higher the better: a share of right answers, a token's probability.
Quality = Mapping[str, float]


@dataclass(frozen=True)
class QuantizeConfig:
    """How a model is rounded. keep: names of layers that stay; smallest: fewer inputs or outputs than this stay, too.

    put_back: nats a token that a layer may cost; a layer of a working model costs some hundredths or tenths.
    tokens: activations of a layer that its output error is measured on, at most.
    """

    rounding: Rounding = field(default_factory=Rounding)
    keep: tuple[str, ...] = ()
    smallest: int = SMALLEST
    put_back: float = 0.5
    tokens: int = 512

    def __post_init__(self):
        if not self.put_back > 0 or self.tokens < 1:
            raise ValueError(f"put_back must be above 0, tokens at least 1: {self}")


def quantize(model: nn.Module, calibration: Sequence[Batch], config: QuantizeConfig) -> Iterator[dict]:
    """Make the model's inner layers ternary in place (`quant.convert` says which), one a step.

    calibration: batches of token ids and labels (-100 where a token carries no loss), read twice a layer.
    Yields: step, name, outputs, inputs, weight_error and output_error (relative: |w - q| / |w|, and the same of the
    layer's outputs on what it really reads, activations rounded), sparsity, cost (nats a token), loss_before and
    loss_after (nats a token, with this and the layers before it ternary), reached (whether the calibration led through
    it: of a layer that it did not, nothing is known), put_back (the loss is then what it was).
    Raises ValueError for an empty calibration, for a model whose loss is not finite before anything is rounded, and
    where no layer can be converted.
    """
    if not calibration:
        raise ValueError("calibration is empty: rounding is measured on real activations")
    was_training = model.training
    model.eval()
    converted = convert(model, config.rounding, config.keep, config.smallest)
    names = [layer.name for layer in converted if layer.becomes == "ternary"]
    for name in names:
        model.get_submodule(name).share = 0.0
    try:
        whole, read = _loss_and_inputs(model, calibration, names[0], config.tokens)
        loss = whole
        if not math.isfinite(whole):
            raise ValueError(f"the model's loss on the calibration is {whole} before anything is rounded")
        for step, name in enumerate(names):
            layer, following = model.get_submodule(name), names[step + 1 : step + 2]
            record = {
                "step": step,
                "name": name,
                **_errors(layer, read),
                "cost": _cost(model, layer, calibration, whole),
            }
            cheap = record["cost"] <= config.put_back  # NaN is not
            record |= {"loss_before": loss, "reached": len(read) > 0, "put_back": not (cheap and len(read))}
            if record["put_back"]:
                put_back(model, name)
            else:
                layer.share = 1.0
            loss, read = _loss_and_inputs(model, calibration, *following, tokens=config.tokens)
            record["loss_after"] = loss
            yield record
    finally:
        model.train(was_training)


def kept(before: Quality, after: Quality) -> float:
    """Share of the quality that is kept: mean over the categories after, over the mean before; 1 - kept is the drop.

    Raises ValueError for other categories, or a model that had no quality to keep.
    """
    if set(before) != set(after) or not before:
        raise ValueError(f"quality before is of {sorted(before)}, after of {sorted(after)}: must be the same, and some")
    whole = sum(before.values())
    if not whole > 0:
        raise ValueError(
            "the model had no quality to keep: not one answer was right before rounding. Measure it by something that "
            "it can do"
        )
    return sum(after.values()) / whole


def fall_back(
    model: nn.Module,
    costs: Mapping[str, float],
    before: Quality,
    measure: Callable[[nn.Module], Quality],
    *,
    drop: float = 0.10,
    stages: int = 8,
) -> Iterator[dict]:
    """Put back the costliest TernaryLinear layers in place, a stage at a time, until quality drops by at most `drop`.

    Args: costs: layer -> its cost, as `quantize` measured it; before: the quality of the
    parent; stages: each puts back one in so many of the layers.
    Yields: step, put_back (names), ternary (layers left), quality, kept. Ends where the drop is small enough or no
    ternary layer is left: the caller looks at the last `kept`.
    """
    left = sorted((n for n, m in model.named_modules() if isinstance(m, TernaryLinear)), key=lambda n: -costs[n])
    at_once = -(-len(left) // stages)
    for step in range(stages):
        chosen, left = left[:at_once], left[at_once:]
        if not chosen:
            return
        for name in chosen:
            put_back(model, name)
        quality = measure(model)
        record = {"step": step, "put_back": chosen, "ternary": len(left), "quality": dict(quality)}
        record["kept"] = kept(before, quality)
        yield record
        if 1 - record["kept"] <= drop:
            return


@torch.no_grad()
def calibration_loss(model: nn.Module, calibration: Sequence[Batch]) -> float:
    """Nats a labelled token over all batches, as one text."""
    total, count = 0.0, 0
    for input_ids, labels in calibration:
        logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1].float()
        told = labels[:, 1:]
        total += float(F.cross_entropy(logits.flatten(0, 1), told.flatten(), ignore_index=-100, reduction="sum"))
        count += int((told != -100).sum())
    if not count:
        raise ValueError("no token of the calibration carries a label")
    return total / count


def _cost(model: nn.Module, layer: TernaryLinear, calibration: Sequence[Batch], whole: float) -> float:
    """Rise of the loss over that of the whole model where this layer alone is ternary."""
    others = {other: other.share for other in model.modules() if isinstance(other, TernaryLinear)}
    for other in others:
        other.share = float(other is layer)
    cost = calibration_loss(model, calibration) - whole
    for other, share in others.items():
        other.share = share
    return cost


def _loss_and_inputs(
    model: nn.Module, calibration: Sequence[Batch], name: str = "", tokens: int = 0
) -> tuple[float, Tensor]:
    """The loss, and what the named layer read meanwhile: its first activations [n, K], n <= tokens."""
    with _watched(model, name, tokens) as seen:
        loss = calibration_loss(model, calibration)
    return loss, torch.cat(seen)[:tokens] if seen else torch.empty(0)


@contextmanager
def _watched(model: nn.Module, name: str, tokens: int) -> Iterator[list[Tensor]]:
    seen: list[Tensor] = []

    def remember(module: nn.Module, inputs: tuple) -> None:
        if sum(map(len, seen)) < tokens:
            seen.append(inputs[0].detach().reshape(-1, inputs[0].shape[-1])[:tokens].clone())

    handle = model.get_submodule(name).register_forward_pre_hook(remember) if name else None
    try:
        yield seen
    finally:
        if handle is not None:
            handle.remove()


@torch.no_grad()
def _errors(layer: TernaryLinear, read: Tensor) -> dict:
    """What rounding does to the layer's weight, and to its outputs on what it reads [n, K]."""
    weight, rounded = layer.weight, round_weight(layer.weight, layer.rounding)
    read = read if len(read) else read.new_empty(0, layer.in_features)
    wanted = F.linear(read, weight)
    off = F.linear(round_activations(read), rounded) - wanted
    return {
        "outputs": layer.out_features,
        "inputs": layer.in_features,
        "weight_error": float((rounded - weight).norm() / weight.norm().clamp_min(1e-30)),
        "output_error": float(off.norm() / wanted.norm().clamp_min(1e-30)) if len(read) else float("nan"),
        "sparsity": layer.sparsity(),
    }
