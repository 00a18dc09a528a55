"""Six techniques over whole models, and the eight recipes that compose them (METHOD, Phase 2).

A recipe is three bits, one for each pair; every stage works tensor by tensor, so a whole model is never built twice:

    first bit    0 Linear        1 SLERP   X = a point between the parents
    second bit   0 DARE          1 TIES    Y = trunk + the parents' task vectors, merged
    third bit    0 FrankenMerge  1 DFS     child = whole layers of [X, Y, halfway between] by the pattern, or
                                           the inverse-variance mean of X and Y, tensor by tensor

All functions take weights as mappings from names to tensors (`weights.py`) and return a new dict; nothing is changed in
place. They compute in float32 (float64 for float64 models), return the first model's types, keep tied weights tied and
copy integer tensors, which must be equal. They raise MergeRefused where models do not fit together and ValueError,
naming parameter, value and range, for a bad parameter.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from .dare import Masks, add_what_stays
from .dfs import inverse_variance_shares
from .frankenmerge import layer_group, layer_groups, source
from .genes import Genes, check_pattern
from .linear import mean, shares
from .slerp import circle_weights, combine
from .ties import add_what_agrees, kth_magnitude
from .weights import MergeRefused, Weights, by_pieces, refuse_other_shapes, same_names, walk

PAIRS = (("Linear", "SLERP"), ("DARE", "TIES"), ("FrankenMerge", "DFS"))
RECIPES = tuple(f"{number:03b}" for number in range(8))
#: A merged tensor, from its name and the parents' tensors with the trunk's last.
OnTrunk = Callable[[str, list[Tensor]], Tensor]
#: The models' weights for a tensor's name.
WeightsOf = Callable[[str], list[float]]


def linear(models: Sequence[Weights], weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """The weighted mean (`linear.py`); weights are made to sum to one, None means equal."""
    _refuse_none(models)
    parts = shares(len(models), Genes(weights=weights).weights)
    return walk(models, lambda name, tensors: _mean(tensors, parts))


def slerp(a: Weights, b: Weights, t: float) -> dict[str, Tensor]:
    """The point t (0 is a, 1 is b) of the great circle from a to b, each tensor for itself (`slerp.py`)."""
    t = Genes(t=t).t
    return walk([a, b], lambda name, tensors: _slerp(*tensors, t))


def dare(
    models: Sequence[Weights],
    base: Weights,
    drop_rate: float,
    seed: int,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """base + scale times the weighted mean of the task vectors, dropped and rescaled at random (`dare.py`).

    base: the trunk that the models were trained from. Taken from the models' own mean, task vectors sum to zero and
    only the masks' noise would be left.
    """
    _refuse_none(models)
    n, genes = len(models), Genes(weights, drop_rate=drop_rate, seed=seed, scale=scale)
    return walk([*models, base], _dare(n, genes, _weights_by_group(n, genes, base)))


def ties(models: Sequence[Weights], base: Weights, top_k: float, scale: float = 1.0) -> dict[str, Tensor]:
    """base + scale times the mean of the trimmed task vectors that agree in sign (`ties.py`).

    base: the trunk. top_k: the share of each model's whole task vector, all tensors together, that is kept.
    """
    _refuse_none(models)
    genes = Genes(top_k=top_k, scale=scale)
    return walk([*models, base], _ties(models, base, genes, _weights_by_group(len(models), genes, base)))


def frankenmerge(models: Sequence[Weights], pattern: str) -> dict[str, Tensor]:
    """Whole layers, each copied from one model (`frankenmerge.py`); letter A is the first model."""
    _refuse_none(models)
    check_pattern(pattern, len(models))
    return walk(models, lambda name, tensors: tensors[source(name, pattern)].clone())


def dfs(models: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean with weights of inverse variance, tensor by tensor (`dfs.py`)."""
    _refuse_none(models)
    return walk(models, lambda name, tensors: _mean(tensors, inverse_variance_shares(tensors)))


@dataclass(frozen=True)
class Recipe:
    """Three techniques, one of each pair, in the order in which they are applied."""

    bits: str

    @property
    def techniques(self) -> tuple[str, str, str]:
        """Their names: "101" is ("SLERP", "DARE", "DFS")."""
        return tuple(pair[int(bit)] for pair, bit in zip(PAIRS, self.bits, strict=True))

    def merge(self, models: Sequence[Weights], base: Weights, genes: Genes | None = None) -> dict[str, Tensor]:
        """The child of at least two models and of the trunk they were trained from.

        SLERP takes `genes.t` on the first two parents. METHOD leaves the third open; left out it would be no parent, so
        each further one joins by another SLERP, with t = 1/3 for the third, the weight it has in a mean. SLERP uses
        no weights. At most one model's worth of numbers is held beside the child (by TIES, before it
        starts), and of other things only the tensors of one name.
        """
        return walk([*models, base], self._by_tensor(models, base, genes or Genes()))

    def in_float64(self, models: Sequence[Weights], base: Weights, genes: Genes | None = None) -> Callable:
        """A function from a tensor's name to what `merge` should give there, in float64: for `check_child`."""
        # Measured in float32, a threshold must let the k-th element itself through when all is computed in float64.
        merge = self._by_tensor(models, base, genes or Genes(), slack=2.0**-22)
        leading = {name: names[0] for names in same_names([*models, base]) for name in names}
        return lambda name: merge(leading[name], [model[name].double() for model in (*models, base)])

    def _by_tensor(self, models: Sequence[Weights], base: Weights, genes: Genes, slack: float = 0.0) -> OnTrunk:
        n = len(models)
        if n < 2:
            raise MergeRefused(f"{n} models: a merge needs at least two parents.")
        weights_of = _weights_by_group(n, genes, base)
        between = _slerp_at(genes.t) if self.bits[0] == "1" else _mean_by_group(weights_of)
        on_trunk = _dare(n, genes, weights_of)
        if self.bits[1] == "1":
            on_trunk = _ties(models, base, genes, weights_of, slack)
        join = _blend if self.bits[2] == "1" else partial(_pick, genes.pattern)
        return lambda name, tensors: join(name, partial(between, name, tensors[:-1]), partial(on_trunk, name, tensors))


def recipe(bits: str) -> Recipe:
    """The recipe of these bits, one of `RECIPES`. Raises ValueError for any other."""
    if bits not in RECIPES:
        raise ValueError(f"bits = {bits!r}: must be one of {', '.join(RECIPES)}")
    return Recipe(bits)


def _mean(tensors: list[Tensor], parts: list[float]) -> Tensor:
    return by_pieces(partial(mean, shares=parts), tensors)


def _slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    return by_pieces(partial(combine, weights=circle_weights(a, b, t), t=t), [a, b])


def _slerp_all(tensors: list[Tensor], t: float) -> Tensor:
    merged = _slerp(tensors[0], tensors[1], t)
    for n, tensor in enumerate(tensors[2:], start=3):
        merged = _slerp(merged, tensor, 1 / n)
    return merged


def _weights_by_group(n: int, genes: Genes, base: Weights) -> WeightsOf:
    """Each model's weight times its emphasis in the tensor's group; without emphasis they sum to one."""
    parts = shares(n, genes.weights)
    if any(len(row) != n for row in genes.emphasis):
        raise ValueError(f"emphasis = {genes.emphasis}: each row needs a factor for each of the {n} models")
    rows = {group: _row(genes.emphasis, i) for i, group in enumerate(layer_groups(base))}

    def weights(name: str) -> list[float]:
        row = rows[layer_group(name)] if rows.get(layer_group(name)) else (1.0,) * n
        return [part * factor for part, factor in zip(parts, row, strict=True)]

    return weights


def _row(emphasis: tuple[tuple[float, ...], ...], group: int) -> tuple[float, ...]:
    return emphasis[group % len(emphasis)] if emphasis else ()


def _slerp_at(t: float) -> OnTrunk:
    return lambda name, tensors: _slerp_all(tensors, t)


def _mean_by_group(weights_of: WeightsOf) -> OnTrunk:
    """A point between the parents whatever the emphasis: the weights of a group are made to sum to one."""

    def merge(name: str, tensors: list[Tensor]) -> Tensor:
        weights = weights_of(name)
        return _mean(tensors, shares(len(tensors), weights if sum(weights) else None))

    return merge


def _dare(n: int, genes: Genes, weights_of: WeightsOf) -> OnTrunk:
    def merge(name: str, tensors: list[Tensor]) -> Tensor:
        masks = [Masks(genes.drop_rate, genes.seed, index, name) for index in range(n)]
        step = partial(add_what_stays, shares=weights_of(name), masks=masks, scale=genes.scale)
        return by_pieces(partial(step, drop_rate=genes.drop_rate), tensors)

    return merge


def _ties(models: Sequence[Weights], base: Weights, genes: Genes, weights_of: WeightsOf, slack: float = 0.0) -> OnTrunk:
    """Trimmed task vectors count n times their weight, so with equal weights as they are.

    slack: by what share the thresholds are lowered.
    """
    names, size = [], 0
    for name, *_ in same_names([*models, base]):
        tensor = base[name]
        if tensor.is_floating_point():
            names.append(name)
            size += tensor.numel()
    thresholds = [(1 - slack) * kth_magnitude(_pairs(names, model, base), size, genes.top_k) for model in models]
    step = partial(add_what_agrees, thresholds=thresholds, scale=genes.scale)

    def merge(name: str, tensors: list[Tensor]) -> Tensor:
        factors = [round(len(models) * weight, 12) for weight in weights_of(name)]
        return by_pieces(partial(step, factors=factors), tensors)

    return merge


def _pairs(names: Sequence[str], model: Weights, base: Weights) -> Iterator[tuple[Tensor, Tensor]]:
    for name in names:
        pair = model[name], base[name]
        refuse_other_shapes(name, pair)
        yield pair


def _pick(pattern: str, name: str, x: Callable[[], Tensor], y: Callable[[], Tensor]) -> Tensor:
    """X, Y, or halfway between; what the pattern does not ask for is not computed."""
    letter = source(name, pattern)
    return _mean_in_place([x(), y()], [0.5, 0.5]) if letter == 2 else (x, y)[letter]()


def _blend(name: str, x: Callable[[], Tensor], y: Callable[[], Tensor]) -> Tensor:
    pair = [x(), y()]
    return _mean_in_place(pair, inverse_variance_shares(pair))


def _mean_in_place(pair: list[Tensor], parts: list[float]) -> Tensor:
    return by_pieces(partial(mean, shares=parts), pair, result=pair[0])


def _refuse_none(models: Sequence[Weights]) -> None:
    if not models:
        raise MergeRefused("No models: there is nothing to merge.")
