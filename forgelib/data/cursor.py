"""Batches drawn from the packed pools: which row comes next is a function of the seed and of how far the run has come,
nothing else."""

import random

import torch

from forgelib.core.rng import stream
from forgelib.data import DataError


class BatchCursor:
    """Endless batches of `batch_size` rows, the category of each row drawn by `weights`.

    pools: category -> int tensor [N, T], all of one T. weights: category -> share, rescaled to sum to 1. Within a
    category rows come in a random order that changes with every pass. With `world_size` processes each takes its own
    `batch_size` rows of a global batch of `batch_size * world_size`, so the processes together read what one process
    with the larger batch reads, in the same order.
    The state is a few integers; a cursor restored from it goes on with the very next batch.
    """

    def __init__(
        self,
        pools: dict[str, torch.Tensor],
        weights: dict[str, float],
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; it must be at least 1")
        if not 0 <= rank < world_size:
            raise DataError(f"rank {rank} lies outside 0..{world_size - 1}")
        self.batch_size, self.seed, self.rank, self.world_size = batch_size, seed, rank, world_size
        self.step, self.stage = 0, -1
        self.set_pools(pools, weights)

    def set_pools(self, pools: dict[str, torch.Tensor], weights: dict[str, float]) -> None:
        """Go on with the pools of the next stage, each from its first row."""
        asked = {name: share for name, share in sorted(weights.items()) if share > 0}
        missing = sorted(set(asked) - set(pools))
        if not asked or missing:
            raise DataError(f"the weights ask for {missing or 'nothing'}; pools are there for {sorted(pools)}")
        lengths = {tuple(pools[name].shape[1:]) for name in asked}
        if len(lengths) != 1 or any(len(pools[name]) == 0 for name in asked):
            raise DataError(f"the pools must be non-empty and of one row length; they have {sorted(lengths)}")
        self._pools, self._weights = {name: pools[name] for name in asked}, asked
        self._drawn = dict.fromkeys(asked, 0)
        self._orders: dict[str, tuple[int, torch.Tensor]] = {}
        self.stage += 1

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(self._pools)

    def next_batch(self) -> torch.Tensor:
        """The next rows of this rank: int64 [batch_size, T]."""
        chooser = random.Random(stream(self.seed, "category", self.stage, self.step))
        size = self.batch_size * self.world_size
        chosen = chooser.choices(list(self._weights), weights=list(self._weights.values()), k=size)
        rows = []
        for index, category in enumerate(chosen):
            position = self._drawn[category]
            self._drawn[category] += 1
            if index // self.batch_size == self.rank:
                rows.append(self._row(category, position))
        self.step += 1
        return torch.stack(rows).long()

    def _row(self, category: str, position: int) -> torch.Tensor:
        pool = self._pools[category]
        epoch, index = divmod(position, len(pool))
        known = self._orders.get(category)
        if known is None or known[0] != epoch:
            generator = torch.Generator().manual_seed(stream(self.seed, "order", self.stage, category, epoch))
            known = self._orders[category] = (epoch, torch.randperm(len(pool), generator=generator))
        return pool[known[1][index]]

    def state_dict(self) -> dict:
        sizes = {name: len(pool) for name, pool in self._pools.items()}
        return {"seed": self.seed, "step": self.step, "stage": self.stage, "drawn": dict(self._drawn), "sizes": sizes}

    def load_state_dict(self, state: dict) -> None:
        """Continue where `state` was taken. Raises DataError when the pools or the seed are not those of the saved
        run."""
        sizes = {name: len(pool) for name, pool in self._pools.items()}
        if dict(state["sizes"]) != sizes or state["seed"] != self.seed:
            raise DataError(
                f"the saved cursor read pools {dict(state['sizes'])} with seed {state['seed']}, "
                f"this one has {sizes} with seed {self.seed}: "
                "set the pools of the saved stage first, or start the run anew"
            )
        self.step, self.stage, self._drawn = state["step"], state["stage"], dict(state["drawn"])
        self._orders = {}
