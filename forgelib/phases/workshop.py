"""From a genome to a measured child: merge, see whether it is whole, read the held-out texts, compare with the parents.

A Workshop is the same wherever it stands (this process, a pool's worker, a Ray worker): it is made from folders and
texts, computes with one thread, and so gives the same fitness to the last bit.
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import forgelib.models  # noqa: F401 (registers Cognate with the Auto classes)
from forgelib.core.sizing import count_parameters
from forgelib.evaluate.fitness import Yardstick, fitness_weights
from forgelib.evaluate.texts import Scores, Texts, score_texts
from forgelib.merge import MergeRefused, read_lazily, recipe
from forgelib.phases.genome import Genome, linear_genome


@dataclass(frozen=True)
class Plan:
    """What a workshop is made from: model folders, the search split, and the rows of the race where one is held. Small
    enough to send to a worker."""

    parents: tuple[str, ...]
    trunk: str
    texts: Texts
    device: str = "cpu"
    race: Texts | None = None


#: Bytes of children's weights that a workshop keeps: a race and what follows it build the same child, and the children
#: of a generation share their losers.
KEPT_BYTES = 64 * 2**20


class Workshop:
    """Builds and measures children of `plan.parents`; `yardstick` holds the parents' own scores on its texts, and
    `in_race` those on the rows of the race."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.weights = [read_lazily(Path(folder)) for folder in plan.parents]
        self.trunk = read_lazily(Path(plan.trunk))
        self.model = load_for_scoring(plan.parents[0], plan.device)
        self.dials = [dials_of(folder) for folder in plan.parents]
        self.yardstick = self._yardstick(plan.texts)
        self.in_race = self._yardstick(plan.race) if plan.race is not None else None
        self._built: OrderedDict[Genome, dict[str, Tensor]] = OrderedDict()

    def _yardstick(self, texts: Texts) -> Yardstick:
        with one_thread():
            scores = [score_texts(load_for_scoring(folder, self.plan.device), texts) for folder in self.plan.parents]
        return Yardstick(scores, texts.category, fitness_weights(count_parameters(self.model)))

    def build(self, genome: Genome) -> dict[str, Tensor]:
        """The child's weights, not to be written to. Raises MergeRefused where the parents do not fit together."""
        if genome in self._built:
            self._built.move_to_end(genome)
            return self._built[genome]
        models = [self.build(one) for one in genome.of] if genome.of else self.weights
        child = recipe(genome.bits).merge(models, self.trunk, genome.genes)
        self._built[genome] = child
        while sum(map(_n_bytes, self._built.values())) > KEPT_BYTES:
            self._built.popitem(last=False)
        return child

    def dials_for(self, genome: Genome) -> dict:
        """Settings of the model that the genome's `dials` names; through a chaos child, of that loser's."""
        return self.dials_for(genome.of[genome.dials]) if genome.of else self.dials[genome.dials]

    def scores(self, genome: Genome, race: bool = False) -> Scores:
        """What the child does on the texts, or on those of the race. Raises Unsound where it is not fit to be
        measured."""
        with one_thread():
            return self.read(self.build(genome), self.dials_for(genome), self.plan.race if race else None)

    def read(self, weights: Mapping[str, Tensor], dials: Mapping[str, float], texts: Texts | None = None) -> Scores:
        """What a model with these weights and dials does on the texts (None: the plan's). Raises Unsound where it does
        not work."""
        if fault := _fault(weights, self.trunk):
            raise Unsound(fault)
        load_weights(self.model, weights)
        if dials:
            self.model.set_dials(dials)
        with one_thread():
            scores = score_texts(self.model, self.plan.texts if texts is None else texts)
        if not np.isfinite(scores.losses).all():
            raise Unsound("its forward pass gives numbers that are not finite")
        return scores

    def measure(self, genome: Genome, race: bool = False) -> dict:
        """fitness, its terms, and `replaced`: why the child is none and Linear was measured in its place, or "".

        Raises ValueError for a race where the plan has no rows of one.
        """
        yardstick, replaced = self.in_race if race else self.yardstick, ""
        if yardstick is None:
            raise ValueError("a race is asked for, and the plan has no rows for it: give Plan(race=...)")
        try:
            scores = self.scores(genome, race)
        except Unsound as fault:
            replaced = str(fault)
            scores = self.scores(linear_genome(len(self.weights), 1), race)
        return {"fitness": yardstick.fitness(scores), "terms": yardstick.terms(scores), "replaced": replaced}


class Unsound(RuntimeError):
    """A child that cannot be measured; the text says why."""


def load_for_scoring(folder: str | Path, device: str = "cpu") -> torch.nn.Module:
    """A model folder, float32, ready to be measured."""
    return (
        AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, trust_remote_code=False)
        .to(device)
        .eval()
    )


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put merged weights into a model; a tied tensor needs one of its names only."""
    missing, surplus = model.load_state_dict(weights, strict=False)
    own = model.state_dict(keep_vars=True)
    given = {own[name].data_ptr() for name in weights if name in own}
    unfilled = [name for name in missing if own[name].data_ptr() not in given]
    if unfilled or surplus:
        raise MergeRefused(f"the merged weights do not fill the model: {(unfilled + surplus)[0]} is the first misfit")


def dials_of(folder: str | Path) -> dict:
    """The settings of a model that are no weights and no shapes; none for a model that does not name any."""
    config = load_config(folder)
    return {name: getattr(config, name) for name in getattr(config, "dials", ())}


def load_config(folder: str | Path):
    """The configuration of a local model folder. Raises MergeRefused where it is none that can be read."""
    try:
        return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # of wrong fields transformers raises anything
        said = " ".join(str(error).split())[:300]
        raise MergeRefused(f"{folder}: its config.json cannot be read ({type(error).__name__}: {said})") from None


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums are ordered alike on every machine of a kind only when one thread makes them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _n_bytes(weights: Mapping[str, Tensor]) -> int:
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in weights.values()}.values())


def _fault(weights: Mapping[str, Tensor], trunk: Mapping[str, Tensor]) -> str:
    for name, tensor in weights.items():
        if not tensor.is_floating_point():
            continue
        if not bool(tensor.isfinite().all()):
            return f"{name} holds NaN or Inf"
        if _is_constant(tensor) and name in trunk and not _is_constant(trunk[name]):
            return f"{name} has zero variance"
    return ""


def _is_constant(tensor: Tensor) -> bool:
    """By its extremes: the variance of equal numbers is rounded to a little above zero."""
    low, high = torch.aminmax(tensor)
    return bool(low == high)
