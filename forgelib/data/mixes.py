"""Which categories a specialist reads and in what share, and which datasets each stage of the curriculum adds (METHOD,
Phase 1)."""

from dataclasses import dataclass

from forgelib.data import CATEGORIES, DataError


@dataclass(frozen=True)
class Specialist:
    """One of the three models of Phase 1. `mix` is the share of tokens per category and sums to 1."""

    mix: dict[str, float]
    act_threshold: float
    ltm_tokens: int


@dataclass(frozen=True)
class Stage:
    """A stretch of the curriculum: the epochs it covers (first, last; counted from 1) and the datasets that it adds to
    the stages before."""

    epochs: tuple[int, int]
    adds: tuple[str, ...]


SPECIALISTS = {
    "reasoning": Specialist(
        {"math": 0.4, "qa": 0.3, "code": 0.1, "commonsense": 0.1, "language": 0.1}, act_threshold=0.95, ltm_tokens=2048
    ),
    "memory": Specialist(
        {"language": 0.4, "qa": 0.3, "math": 0.1, "code": 0.1, "commonsense": 0.1}, act_threshold=0.90, ltm_tokens=8192
    ),
    "speed": Specialist(
        {"commonsense": 0.4, "math": 0.3, "code": 0.1, "qa": 0.1, "language": 0.1}, act_threshold=0.99, ltm_tokens=2048
    ),
}
TRUNK_MIX = dict.fromkeys(CATEGORIES, 1 / len(CATEGORIES))

#: METHOD places eleven of the sixteen datasets. The other five join their nearest kin: ASDiv and CodeXGLUE in the
#: foundation, BoolQ beside PIQA, StrategyQA beside HotpotQA, OpenWebText beside FineWeb-Edu.
CURRICULUM = {
    "foundation": Stage((1, 3), ("gsm8k", "svamp", "asdiv", "mbpp", "codexglue")),
    "reasoning": Stage((4, 6), ("arc_easy", "arc_challenge", "piqa", "boolq", "wikitext")),
    "advanced": Stage((7, 10), ("hotpotqa", "drop", "strategyqa", "hellaswag", "fineweb_edu", "openwebtext")),
}


def stage_datasets(stage: str) -> tuple[str, ...]:
    """Every dataset read in `stage`: its own and those of the stages before it."""
    if stage not in CURRICULUM:
        raise DataError(f"there is no curriculum stage '{stage}'; choose one of {', '.join(CURRICULUM)}")
    names = list(CURRICULUM)
    return tuple(name for earlier in names[: names.index(stage) + 1] for name in CURRICULUM[earlier].adds)


def stage_weights(mix: dict[str, float], present: set[str]) -> tuple[dict[str, float], str]:
    """The mix restricted to the categories that a stage has, rescaled to sum to 1, and a note on what was left out (""
    when nothing)."""
    kept = {name: mix[name] for name in CATEGORIES if name in present and mix.get(name, 0) > 0}
    total = sum(kept.values())
    if not kept:
        raise DataError(
            f"the stage has rows of {sorted(present)} only and the mix asks for {sorted(mix)}: nothing to train on"
        )
    weights = {name: share / total for name, share in kept.items()}
    missing = [name for name in CATEGORIES if mix.get(name, 0) > 0 and name not in present]
    note = ""
    if missing:
        shares = ", ".join(f"{name} {share:.3g}" for name, share in weights.items())
        note = f"no rows of {', '.join(missing)} in this stage: the mix is rescaled to {shares}"
    return weights, note
