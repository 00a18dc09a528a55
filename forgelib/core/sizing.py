"""How large a model is, and what follows from that (METHOD, Profiles)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SizeClass:
    """compression_target: times smaller than float32. sparsity_threshold: as a share of mean |w|; below it, 0."""

    name: str
    max_parameters: float
    batch_size: int
    compression_target: float
    sparsity_threshold: float
    expected_sparsity: float
    n_thoughts: int
    thought_length: int


SIZE_CLASSES = (
    SizeClass("tiny", 50e6, 32, 6.0, 0.05, 0.25, 8, 20),
    SizeClass("small", 500e6, 16, 8.0, 0.10, 0.35, 6, 15),
    SizeClass("medium", 2e9, 8, 10.0, 0.15, 0.40, 4, 12),
    SizeClass("large", float("inf"), 4, 12.0, 0.20, 0.45, 4, 10),
)


def size_class(n_parameters: int) -> SizeClass:
    """The class of a model with so many parameters. Raises ValueError below 1."""
    if n_parameters < 1:
        raise ValueError(f"n_parameters = {n_parameters}: a model has at least one")
    return next(c for c in SIZE_CLASSES if n_parameters < c.max_parameters)


def count_parameters(model) -> int:
    """Parameters of a torch module, tied ones once."""
    return sum({id(p): p.numel() for p in model.parameters()}.values())
