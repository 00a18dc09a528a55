"""The continuous genes of a merge, with the values of METHOD's Phase 2 as defaults; a bad one is refused at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

#: Inclusive ranges. A drop rate near one would multiply what is left by thousands.
RANGES = {"t": (0.0, 1.0), "drop_rate": (0.0, 0.999), "top_k": (1e-6, 1.0), "scale": (0.0, 10.0)}
PATTERN_LENGTH = 64
LARGEST_EMPHASIS = 4.0


@dataclass(frozen=True)
class Genes:
    """What a recipe's techniques are turned by. Raises ValueError naming field, value and range.

    Args:
        weights: one for each model, at least 0, not all 0; made to sum to one. None means equal (not SLERP).
        t: where between the first two parents, 0 to 1 (SLERP).
        drop_rate: share of each task vector that is dropped, 0 to 0.999 (DARE).
        top_k: share of the whole task vector that is kept, above 0 to 1 (TIES).
        scale: what the merged task vector is multiplied with, 0 to 10 (DARE, TIES).
        pattern: letters A, B, C, cycled over the layers, 1 to 64 of them (FrankenMerge).
        seed: of the random masks (DARE).
        emphasis: a row for each group of tensors (`frankenmerge.layer_group`, cycled), a factor of 0 to 4 for each
            model: by how much its weight counts more in that group (not SLERP). () means 1 everywhere.
    """

    weights: tuple[float, ...] | None = None
    t: float = 0.5
    drop_rate: float = 0.9
    top_k: float = 0.2
    scale: float = 1.0
    pattern: str = "ABC"
    seed: int = 0
    emphasis: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self):
        for field, (low, high) in RANGES.items():
            value = getattr(self, field)
            if not _is_number(value) or not low <= value <= high:
                raise ValueError(f"{field} = {value!r}: must be a number between {low:g} and {high:g}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed = {self.seed!r}: must be an integer of at least 0")
        if self.weights is not None:
            object.__setattr__(self, "weights", _checked_weights(self.weights))
        check_pattern(self.pattern, 3)
        object.__setattr__(self, "emphasis", tuple(tuple(row) for row in self.emphasis))
        for row in self.emphasis:
            if not row or not all(_is_number(factor) and 0 <= factor <= LARGEST_EMPHASIS for factor in row):
                raise ValueError(f"emphasis = {row}: must be numbers between 0 and {LARGEST_EMPHASIS:g}, one a model")


def check_pattern(pattern: str, choices: int) -> None:
    """Refuse, in words, a layer pattern that is empty, too long, or names more than the `choices` there are."""
    letters = ascii_uppercase[:choices]
    if not isinstance(pattern, str) or not 1 <= len(pattern) <= PATTERN_LENGTH or set(pattern) - set(letters):
        raise ValueError(f"pattern = {pattern!r}: must be 1 to {PATTERN_LENGTH} letters of {letters}")


def _checked_weights(weights: Sequence[float]) -> tuple[float, ...]:
    values = tuple(weights)
    if not values or not all(_is_number(value) and value >= 0 for value in values) or not sum(values) > 0:
        raise ValueError(f"weights = {values}: must be numbers of at least 0, not all 0")
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
