"""From packed data to the stages of a training: what is read, how long, how deep."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

#: Share of the trunk's steps per curriculum stage: epochs 1-3, 4-6 and 7-10 of ten.
TRUNK_SHARES = {"foundation": 0.3, "reasoning": 0.3, "advanced": 0.4}
#: Recursion cycles T_max: three for the trunk (given); a specialist's own depth is reached by curriculum, halfway.
#: Given is "3, to 6 by curriculum" for all; speed stops after one, or it would be the slowest (its threshold is 0.99).
TRUNK_CYCLES = 3
SPECIALIST_CYCLES = {"reasoning": 6, "memory": 3, "speed": 1}


@dataclass(frozen=True)
class Stage:
    """One stretch of training: `steps` optimizer steps on sequences of `seq_len` tokens from `pools`.

    pools maps a category to its packed sequences [N, seq_len]; max_cycles is the recursion depth trained here.
    """

    name: str
    steps: int
    seq_len: int
    batch_size: int
    max_cycles: int
    weights: Mapping[str, float]
    pools: Mapping[str, torch.Tensor] = field(repr=False)


def trunk_stages(bundle, steps: int, tokens_per_step: int) -> tuple[Stage, ...]:
    """The whole curriculum with an even mix of the categories; every stage at least one step."""
    return tuple(
        _stage(bundle, "trunk", name, max(1, round(share * steps)), tokens_per_step, TRUNK_CYCLES)
        for name, share in TRUNK_SHARES.items()
        if name in bundle.pools
    )


def specialist_stages(bundle, specialist: str, steps: int, tokens_per_step: int) -> tuple[Stage, ...]:
    """The last stage's data in the specialist's mix: first at the trunk's depth, then at its own."""
    name, first = [stage for stage in TRUNK_SHARES if stage in bundle.pools][-1], max(1, steps // 2)
    depths = ((first, TRUNK_CYCLES), (steps - first, SPECIALIST_CYCLES[specialist]))
    return tuple(_stage(bundle, specialist, name, n, tokens_per_step, cycles) for n, cycles in depths if n > 0)


def _stage(bundle, mix: str, name: str, steps: int, tokens_per_step: int, max_cycles: int) -> Stage:
    weights, _ = bundle.weights(mix, name)
    pools = {category: bundle.pools[name][category] for category in weights}
    seq_len = next(iter(pools.values())).shape[1]
    return Stage(
        f"{name} x{max_cycles}", steps, seq_len, max(1, tokens_per_step // seq_len), max_cycles, weights, pools
    )
