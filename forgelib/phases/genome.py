"""A genome: which recipe a child is merged by, its continuous genes, and where its dials come from (METHOD, Phase 2).

bits choose the recipe; weights, t, drop_rate, top_k, scale and pattern turn its techniques; `dials` names the model
whose settings that are no weights (halting threshold, depth, memory horizon) the child takes. A chaos child merges
three losers of its own generation instead of the parents: `of` holds their genomes.
"""

import hashlib
import json
import random
from dataclasses import asdict, dataclass, replace

from forgelib.merge import RECIPES, Genes

#: Range and step (standard deviation) of a small change of each continuous gene.
RANGES = {"t": (0.0, 1.0, 0.15), "drop_rate": (0.0, 0.95, 0.2), "top_k": (0.05, 1.0, 0.2), "scale": (0.3, 3.0, 0.25)}
WEIGHT_STEP, MASK_SEEDS, DEEPEST_CHAOS = 0.15, 1000, 3
EMPHASIS_STEP, LARGEST_EMPHASIS = 0.3, 3.0
#: Smallest and largest size of a child's steps, in multiples of the ones above.
SIZES = (0.1, 4.0)
BIT_FLIP, GENES_CHANGED, STEP_AGAIN = 0.1, 1.5, 0.4
LETTERS = "ABC"
#: What each bit's choice expresses; the other genes are silent and change nothing.
EXPRESSED = (
    ({"weights", "emphasis"}, {"t"}),
    ({"weights", "emphasis", "drop_rate", "scale", "mask_seed"}, {"weights", "emphasis", "top_k", "scale"}),
    ({"pattern"}, set()),
)


@dataclass(frozen=True)
class Genome:
    """weights: one for each model that is merged, summing to 1. pattern: a letter a layer. dials: index of a model.

    emphasis: by how much more a model's weight counts, a row for what lies outside the layers, one a layer, and one for
    a further stack such as a recursion net; 1 throughout means the same weights everywhere.
    """

    bits: str
    weights: tuple[float, ...]
    pattern: str
    t: float = 0.5
    drop_rate: float = 0.9
    top_k: float = 0.2
    scale: float = 1.0
    dials: int = 0
    mask_seed: int = 0
    emphasis: tuple[tuple[float, ...], ...] = ()
    of: tuple["Genome", ...] = ()

    @property
    def genes(self) -> Genes:
        """What the recipe of `forgelib.merge` takes."""
        continuous = (self.weights, self.t, self.drop_rate, self.top_k, self.scale)
        return Genes(*continuous, self.pattern, self.mask_seed, self.emphasis)

    @property
    def expressed(self) -> dict:
        """The genes that shape the child, and no silent ones."""
        letters = set(self.pattern) if self.bits[2] == "0" else {"C"}
        heard = (letters != {"B"}, letters != {"A"}, True)
        named = {"bits", "dials"}.union(*(EXPRESSED[i][int(self.bits[i])] for i in range(3) if heard[i]))
        if self.drop_rate == 0:  # nothing is dropped, whatever the masks
            named -= {"mask_seed"}
        return {name: getattr(self, name) for name in sorted(named)} | {"of": [one.expressed for one in self.of]}

    @property
    def key(self) -> str:
        """Hash of the expressed genes: genomes of one key are one child, measured once."""
        return hashlib.sha256(json.dumps(self.expressed).encode()).hexdigest()[:16]

    @property
    def depth(self) -> int:
        """0 for a merge of the parents, 1 for a merge of such merges, and so on."""
        return 1 + max(one.depth for one in self.of) if self.of else 0

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Genome":
        nested = tuple(cls.from_dict(one) for one in values["of"])
        emphasis = tuple(tuple(row) for row in values["emphasis"])
        return cls(**{**values, "weights": tuple(values["weights"]), "emphasis": emphasis, "of": nested})


def default_genome(bits: str, n_models: int, n_layers: int) -> Genome:
    """A recipe as METHOD gives it."""
    pattern = (LETTERS * n_layers)[: max(1, n_layers)]
    return Genome(bits, _shares([1.0] * n_models), pattern, emphasis=((1.0,) * n_models,) * (n_layers + 2))


def linear_genome(n_models: int, n_layers: int, dials: int = 0) -> Genome:
    """The parents' plain mean: every layer, and what lies outside the layers, is the first stage's Linear."""
    return replace(default_genome("000", n_models, n_layers), pattern="A" * max(1, n_layers), dials=dials)


def task_arithmetic(weights: tuple[float, ...], n_layers: int, dials: int) -> Genome:
    """The trunk and the weighted sum of all task vectors, nothing dropped (DARE with drop rate 0, every layer of it).

    With equal weights that is the parents' plain mean, and with one weight of 1 a parent itself; but here a mutation of
    `scale` or of one parent's emphasis leads on beyond them.
    """
    plain = default_genome("000", len(weights), n_layers)
    return replace(plain, weights=weights, pattern="B" * max(1, n_layers), drop_rate=0.0, dials=dials)


def random_genome(dice: random.Random, n_models: int, n_layers: int, bits: str | None = None) -> Genome:
    """Fresh blood: every gene drawn evenly from its range."""
    drawn = {name: _rounded(dice.uniform(low, high)) for name, (low, high, _) in RANGES.items()}
    return Genome(
        bits or dice.choice(RECIPES),
        _shares([dice.expovariate(1.0) for _ in range(n_models)]),
        "".join(dice.choice(LETTERS) for _ in range(max(1, n_layers))),
        dials=dice.randrange(n_models),
        mask_seed=dice.randrange(MASK_SEEDS),
        emphasis=((1.0,) * n_models,) * (n_layers + 2),
        **drawn,
    )


def mutated(genome: Genome, dice: random.Random, before: Genome | None = None) -> Genome:
    """A copy with flipped bits and small changes; never the same child again.

    before: a less fit genome that this one was mutated from. A step that helped is then often taken once more.
    """
    child = genome
    while child.key == genome.key:
        again = before is not None and dice.random() < STEP_AGAIN
        child = _stepped_on(genome, before, dice) if again else _changed(genome, dice)
        before = None
    return child


def _changed(genome: Genome, dice: random.Random) -> Genome:
    """One size for all of a child's steps, drawn with a heavy tail: some children refine, some jump. About
    GENES_CHANGED of the genes that count change, so that a good change is seldom spoilt by a bad one."""
    size = min(SIZES[1], max(SIZES[0], 2.0 ** dice.gauss(-0.5, 1.25)))
    bits = "".join(str(1 - int(bit)) if dice.random() < BIT_FLIP else bit for bit in genome.bits)
    names = sorted(set(replace(genome, bits=bits).expressed) - {"bits", "of"})
    moved = {}
    for name in names:
        if dice.random() >= GENES_CHANGED / len(names):
            continue
        if name in RANGES:
            moved[name] = _within(name, getattr(genome, name) + dice.gauss(0, size * RANGES[name][2]))
        elif name == "weights":
            moved[name] = _shares([max(0.0, w + dice.gauss(0, size * WEIGHT_STEP)) for w in genome.weights])
        elif name == "emphasis":
            moved[name] = _with_a_changed_row(genome.emphasis, size * EMPHASIS_STEP, dice)
        elif name == "pattern":
            place = dice.randrange(len(genome.pattern))
            moved[name] = genome.pattern[:place] + dice.choice(LETTERS) + genome.pattern[place + 1 :]
        else:
            moved[name] = dice.randrange(len(genome.weights) if name == "dials" else MASK_SEEDS)
    return replace(genome, bits=bits, **moved)


def _stepped_on(genome: Genome, before: Genome, dice: random.Random) -> Genome:
    """From `before` to here, and on: every continuous gene moves by half to twice its last move."""
    far = dice.uniform(0.5, 2.0)

    def on(now: tuple[float, ...], then: tuple[float, ...]) -> list[float]:
        return [max(0.0, a + far * (a - b)) for a, b in zip(now, then, strict=True)]

    moved = {name: _within(name, on((getattr(genome, name),), (getattr(before, name),))[0]) for name in RANGES}
    moved["weights"] = _shares(on(genome.weights, before.weights))
    pairs = zip(genome.emphasis, before.emphasis, strict=True)
    rows = (on(row, old) for row, old in pairs)
    moved["emphasis"] = tuple(tuple(_rounded(min(LARGEST_EMPHASIS, x)) for x in row) for row in rows)
    return replace(genome, **moved)


def _within(name: str, value: float) -> float:
    low, high, _ = RANGES[name]
    return _rounded(min(high, max(low, value)))


def chaos(losers: list[Genome], dice: random.Random, n_layers: int) -> Genome:
    """Three losers merged by a recipe of the dice. FrankenMerge takes every layer from the first stage, so that half of
    these children are the losers' mean: averaging takes out what each of them has in noise.

    In the place of a loser that is chaos of the deepest kind stands its first forebear.
    """
    flat = tuple(one if one.depth < DEEPEST_CHAOS else _flattened(one) for one in losers)
    merged = default_genome(dice.choice(RECIPES), len(flat), n_layers)
    drawn = {"dials": dice.randrange(len(flat)), "mask_seed": dice.randrange(MASK_SEEDS)}
    return replace(merged, of=flat, drop_rate=0.5, pattern="A" * len(merged.pattern), **drawn)


def _flattened(genome: Genome) -> Genome:
    return genome.of[0] if not genome.of[0].of else _flattened(genome.of[0])


def _with_a_changed_row(
    emphasis: tuple[tuple[float, ...], ...], step: float, dice: random.Random
) -> tuple[tuple[float, ...], ...]:
    rows, place = list(emphasis), dice.randrange(len(emphasis))
    moved = (factor + dice.gauss(0, step) for factor in rows[place])
    rows[place] = tuple(_rounded(min(LARGEST_EMPHASIS, max(0.0, factor))) for factor in moved)
    return tuple(rows)


def _shares(weights: list[float]) -> tuple[float, ...]:
    """Rounded to four digits, and summing to 1 but for the rounding; equal where all are zero."""
    total = sum(weights)
    return tuple(_rounded(w / total) if total > 0 else _rounded(1 / len(weights)) for w in weights)


def _rounded(value: float) -> float:
    return round(value, 4)


def diversity(genomes: list[Genome]) -> float:
    """Mean share of the three recipe bits in which two members differ: 0 for one recipe, 4/7 for all eight once."""
    pairs = [(a, b) for i, a in enumerate(genomes) for b in genomes[i + 1 :]]
    return sum(sum(x != y for x, y in zip(a.bits, b.bits, strict=True)) / 3 for a, b in pairs) / max(1, len(pairs))
