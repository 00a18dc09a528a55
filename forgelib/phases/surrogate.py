"""A guess at a child's fitness before it is merged, from the children that were measured (surrogate-assisted evolution,
Jin 2011).

To first order a merge of models of one trunk is a point in the space of their task vectors: a coefficient for each
layer group and parent, and how much noise DARE's masks add. `position` computes that point from the genome alone;
a Gaussian process over the points measured so far (Rasmussen and Williams 2006, algorithm 2.1) guesses at the others.

Shapes: M merged models, G layer groups (rows of the emphasis), n parents, N measured children.
"""

from collections.abc import Sequence

import numpy as np

from forgelib.phases.genome import Genome

#: Candidates for the length scale of the kernel; the most likely one is taken.
LENGTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
#: Set by judgement, not tuned: variance, of 1, that the points do not explain; how far apart children stand by their
#: dials or by TIES; and how many median deviations below the median a child counts at the least. ROUGH is the
#: unexplained variance of a fitness that was estimated from few rows.
UNEXPLAINED, DIALS_APART, TIES_APART, FLOOR, ROUGH = 0.02, 1.0, 0.5, 3.0, 0.15
#: top_k, and the coefficient at which TIES puts each of three orthogonal Gaussian task vectors of equal weight.
TIES_TOP_K, TIES_COEFFICIENT = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0), (0.27, 0.40, 0.55, 0.63, 0.585, 0.50)


def position(genome: Genome, n_parents: int) -> np.ndarray:
    """Coefficients [G n], masks' noise [G], dials (one of n) and the share of TIES, as one vector."""
    coefficients, noise = _place(genome, n_parents)
    dials = genome
    while dials.of:
        dials = dials.of[dials.dials]
    chosen = DIALS_APART * np.eye(n_parents)[dials.dials]
    return np.concatenate([coefficients.ravel(), noise, chosen, [TIES_APART * int(genome.bits[1])]])


def _place(genome: Genome, n_parents: int) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [G, n] and noise [G] of a child."""
    groups = len(genome.emphasis)
    if genome.of:
        places = [_place(one, n_parents) for one in genome.of]
        models, noises = np.stack([c for c, _ in places], 1), np.stack([s for _, s in places], 1)
    else:
        models, noises = np.tile(np.eye(n_parents), (groups, 1, 1)), np.zeros((groups, n_parents))
    on_trunk = np.array(genome.weights) * np.array(genome.emphasis)  # [G, M]
    between = _between(genome, on_trunk)
    masks = np.zeros(groups)
    if genome.bits[1] == "0":
        on_trunk = genome.scale * on_trunk
        masks = np.sqrt((on_trunk**2).sum(1) * genome.drop_rate / (1 - genome.drop_rate))
    else:
        strength = np.interp(genome.top_k, TIES_TOP_K, TIES_COEFFICIENT)
        on_trunk = genome.scale * len(genome.weights) * strength * on_trunk
    of_y = _shares_of_y(genome)
    mix = (1 - of_y)[:, None] * between + of_y[:, None] * on_trunk
    noise = np.hypot(of_y * masks, np.linalg.norm(mix * noises, axis=1))
    return (mix[:, :, None] * models).sum(1), noise


def _between(genome: Genome, weighted: np.ndarray) -> np.ndarray:
    """Weights [G, M] of the first stage; they sum to one."""
    if genome.bits[0] == "0":
        total = weighted.sum(1, keepdims=True)
        return np.where(total > 0, weighted / np.where(total > 0, total, 1), 1 / weighted.shape[1])
    parts = [1 - genome.t, genome.t]
    for n in range(3, weighted.shape[1] + 1):
        parts = [part * (1 - 1 / n) for part in parts] + [1 / n]
    return np.tile(parts, (len(weighted), 1))


def _shares_of_y(genome: Genome) -> np.ndarray:
    """How much of each group comes from the second stage [G]; what is no layer follows the first letter."""
    groups = len(genome.emphasis)
    if genome.bits[2] == "1":
        return np.full(groups, 0.5)
    share, pattern = {"A": 0.0, "B": 1.0, "C": 0.5}, genome.pattern
    letters = [pattern[0], *(pattern[layer % len(pattern)] for layer in range(groups - 2)), pattern[0]]
    return np.array([share[letter] for letter in letters])


class Surrogate:
    """The process over measured genomes and their fitness [N]; `guess` gives mean and standard deviation of others.

    rough: for each whether its fitness is an estimate from few rows and counts less; None means none is.
    """

    def __init__(
        self, genomes: Sequence[Genome], fitness: Sequence[float], n_parents: int, rough: Sequence[bool] | None = None
    ):
        self.n_parents, values = n_parents, np.asarray(fitness, float)
        self.unexplained = np.where(np.zeros(len(values), bool) if rough is None else rough, ROUGH, UNEXPLAINED)
        middle = np.median(values)
        floor = middle - FLOOR * np.median(np.abs(values - middle))
        values = np.maximum(values, floor)
        self.mean, self.spread = values.mean(), values.std() or 1.0
        self.points, scaled = self._positions(genomes), (values - self.mean) / self.spread
        fits = [self._fit(scaled, length) for length in LENGTHS]
        self.length, self.factor, self.alpha, _ = max(fits, key=lambda fit: fit[-1])

    def guess(self, genomes: Sequence[Genome]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the fitness of each genome."""
        cross = _kernel(self._positions(genomes), self.points, self.length)
        explained = np.linalg.solve(self.factor, cross.T)
        deviation = np.sqrt(np.maximum(1 - (explained**2).sum(0), 0))
        return self.mean + self.spread * cross @ self.alpha, self.spread * deviation

    def _positions(self, genomes: Sequence[Genome]) -> np.ndarray:
        return np.stack([position(genome, self.n_parents) for genome in genomes])

    def _fit(self, values: np.ndarray, length: float) -> tuple:
        kernel = _kernel(self.points, self.points, length) + np.diag(self.unexplained)
        factor = np.linalg.cholesky(kernel)
        alpha = np.linalg.solve(factor.T, np.linalg.solve(factor, values))
        likelihood = -0.5 * values @ alpha - np.log(np.diag(factor)).sum()
        return length, factor, alpha, likelihood


def _kernel(a: np.ndarray, b: np.ndarray, length: float) -> np.ndarray:
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return np.exp(-squared / (2 * length**2))
