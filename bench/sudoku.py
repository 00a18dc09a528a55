"""(e) 4x4 Sudoku by recursion alone: an outside check of `forgelib.models.recursion` (TRM, 2510.04871).

One 2-layer net of about 73k parameters is trained three ways on the same 1,000 puzzles for the same wall-clock time:

    direct            one pass, y = f(x)
    deep supervision  y <- f(y + x), up to 16 supervision steps, y carried detached (n = 0 micro-steps)
    recursion         `refine` for three cycles a supervision step, only the last with gradient, y and z carried

The score is the share of unseen puzzles whose 16 cells are all right. There are only 288 solved 4x4 grids, so
two unseen sets are kept: new puzzles of the grids trained on, and puzzles of grids that were held out altogether.
"""

import copy
import itertools
import random
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.table import main
from forgelib.core.ema import WeightAverage
from forgelib.models.layers import SwiGLU
from forgelib.models.recursion import RecursionLayer, refine

CELLS, DIGITS = 16, 4
SUPERVISION_STEPS = 16
UNITS = [
    *([row * 4 + column for column in range(4)] for row in range(4)),
    *([row * 4 + column for row in range(4)] for column in range(4)),
    *([(r + i) * 4 + c + j for i in range(2) for j in range(2)] for r in (0, 2) for c in (0, 2)),
]
PEERS = [{cell for unit in UNITS if i in unit for cell in unit} - {i} for i in range(CELLS)]


def solutions(puzzle: tuple[int, ...], limit: int) -> list[tuple[int, ...]]:
    """Up to `limit` completions of a puzzle (16 digits 1 to 4 by rows, 0 for an empty cell)."""
    if 0 not in puzzle:
        return [puzzle]
    choices = {
        i: [d for d in range(1, DIGITS + 1) if all(puzzle[p] != d for p in PEERS[i])]
        for i in range(CELLS)
        if not puzzle[i]
    }
    cell = min(choices, key=lambda i: len(choices[i]))
    found = []
    for digit in choices[cell]:
        found += solutions((*puzzle[:cell], digit, *puzzle[cell + 1 :]), limit - len(found))
        if len(found) >= limit:
            break
    return found


class Puzzles(NamedTuple):
    """cells [N, 16] int64, 0 empty; answers [N, 16] int64, digit minus 1."""

    cells: Tensor
    answers: Tensor


def draw_puzzles(grids: list[tuple[int, ...]], n: int, seed: int, taken: set[tuple[int, ...]]) -> Puzzles:
    """`n` distinct puzzles with one solution and 4 to 8 given cells, none of them in `taken` (which is added to)."""
    dice, cells, answers = random.Random(seed), [], []
    while len(cells) < n:
        grid, wanted = dice.choice(grids), dice.randint(4, 8)
        puzzle = grid
        for cell in dice.sample(range(CELLS), CELLS):
            emptied = (*puzzle[:cell], 0, *puzzle[cell + 1 :])
            if CELLS - puzzle.count(0) > wanted and len(solutions(emptied, 2)) == 1:
                puzzle = emptied
        if puzzle not in taken:
            taken.add(puzzle)
            cells.append(puzzle)
            answers.append([digit - 1 for digit in grid])
    return Puzzles(torch.tensor(cells), torch.tensor(answers))


def make_data(n_train: int, n_test: int, seed: int) -> dict[str, Puzzles]:
    """Disjoint puzzles: "train" and "unseen" share 240 solution grids, "unseen grids" come from the other 48."""
    grids = sorted(solutions((0,) * CELLS, 288))
    random.Random(seed).shuffle(grids)
    taken: set[tuple[int, ...]] = set()
    sets = (("train", grids[48:], n_train), ("unseen", grids[48:], n_test), ("unseen grids", grids[:48], n_test))
    return {name: draw_puzzles(pool, n, seed + i, taken) for i, (name, pool, n) in enumerate(sets)}


class BothWaysAttention(nn.Module):
    """Attention among all cells, [B, 16, D] -> [B, 16, D]; the output projection is the recursion layer's."""

    def __init__(self, d_model: int, n_heads: int):
        super().__init__()
        self.n_heads, self.qkv = n_heads, nn.Linear(d_model, 3 * d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)


class SudokuNet(nn.Module):
    """The tiny net f, the embedding of puzzle cells, and the heads for digits and for "all right, halt"."""

    def __init__(self, d_model: int = 56, n_heads: int = 4, d_ff: int = 136, n_layers: int = 2):
        super().__init__()
        self.digits, self.places = nn.Embedding(DIGITS + 1, d_model), nn.Embedding(CELLS, d_model)
        self.layers = nn.ModuleList(
            RecursionLayer(d_model, BothWaysAttention(d_model, n_heads), SwiGLU(d_model, d_ff)) for _ in range(n_layers)
        )
        self.answer, self.halt = nn.Linear(d_model, DIGITS), nn.Linear(d_model, 1)
        nn.init.zeros_(self.halt.weight)
        nn.init.constant_(self.halt.bias, -5.0)
        for name in ("first_y", "first_z"):
            self.register_buffer(name, torch.randn(CELLS, d_model))

    def net(self, u: Tensor) -> Tensor:
        for layer in self.layers:
            u = layer(u, {})
        return u

    def read(self, cells: Tensor) -> Tensor:
        return self.digits(cells) + self.places.weight

    def start(self, n: int) -> tuple[Tensor, Tensor]:
        return self.first_y.expand(n, -1, -1).clone(), self.first_z.expand(n, -1, -1).clone()


@dataclass(frozen=True)
class Method:
    """n_cycles and n_micro_steps of a supervision step (0 cycles: one pass y = f(x)), and how many steps at most."""

    name: str
    n_cycles: int
    n_micro_steps: int
    supervision_steps: int

    def improve(self, model: SudokuNet, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """One supervision step: all cycles but the last without gradient (TRM, figure 3)."""
        if self.n_cycles == 0:
            return model.net(x), z
        if self.n_micro_steps == 0:
            return model.net(y + x), z
        with torch.no_grad():
            for _ in range(self.n_cycles - 1):
                y, z = refine(model.net, x, y, z, self.n_micro_steps)
        return refine(model.net, x, y, z, self.n_micro_steps)


METHODS = (
    Method("direct", 0, 0, 1),
    Method("deep supervision", 1, 0, SUPERVISION_STEPS),
    Method("recursion", 3, 2, SUPERVISION_STEPS),
)


@torch.no_grad()
def solved_share(model: SudokuNet, method: Method, puzzles: Puzzles) -> float:
    """Share of puzzles with all 16 cells right after the last supervision step."""
    x, (y, z) = model.read(puzzles.cells), model.start(len(puzzles.cells))
    for _ in range(method.supervision_steps):
        y, z = method.improve(model, x, y, z)
    return float((model.answer(y).argmax(-1) == puzzles.answers).all(-1).float().mean())


class Carried:
    """A batch in which each puzzle stays for up to `supervision_steps` optimizer steps, (y, z) carried detached.

    A puzzle leaves early once the net says that it is all right; one in ten must stay a random number of steps.
    """

    def __init__(self, model: SudokuNet, method: Method, puzzles: Puzzles, batch: int, seed: int):
        self.model, self.method, self.puzzles = model, method, puzzles
        self.dice = torch.Generator().manual_seed(seed)
        self.y, self.z = model.start(batch)
        self.left, self.rows, self.stay = (torch.zeros(batch, dtype=torch.long) for _ in range(3))
        self.order = torch.empty(0, dtype=torch.long)

    def refill(self) -> None:
        """Put new puzzles where `left` is 0."""
        free = (self.left == 0).nonzero().squeeze(-1)
        if len(self.order) < len(free):
            self.order = torch.cat([self.order, torch.randperm(len(self.puzzles.cells), generator=self.dice)])
        self.rows[free], self.order = self.order[: len(free)], self.order[len(free) :]
        y, z = self.model.start(len(free))
        self.y, self.z = self.y.index_copy(0, free, y), self.z.index_copy(0, free, z)
        most = self.method.supervision_steps
        self.left[free] = most
        stays = torch.randint(2, most + 1, (len(free),), generator=self.dice) if most > 1 else torch.ones(len(free))
        explores = torch.rand(len(free), generator=self.dice) < 0.1
        self.stay[free] = torch.where(explores, stays, 1).long()

    def loss(self) -> Tensor:
        """One supervision step on the batch: cross-entropy of the cells, and of "all right" for the halting logit."""
        self.refill()
        x, answers = self.model.read(self.puzzles.cells[self.rows]), self.puzzles.answers[self.rows]
        y, z = self.method.improve(self.model, x, self.y, self.z)
        logits, halt = self.model.answer(y), self.model.halt(y.mean(1)).squeeze(-1)
        right = (logits.argmax(-1) == answers).all(-1)
        self.y, self.z = y.detach(), z.detach()
        self.left, self.stay = self.left - 1, self.stay - 1
        self.left = torch.where((halt.detach() > 0) & (self.stay <= 0), 0, self.left)
        cells = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
        return cells + 0.5 * F.binary_cross_entropy_with_logits(halt, right.float())


def train(
    method: Method,
    data: dict[str, Puzzles],
    *,
    seconds: float,
    steps: int | None,
    seed: int,
    batch: int = 64,
    lr: float = 2e-3,
) -> dict:
    """Train for `seconds` of wall clock or exactly `steps`; the row of the table, scored with the EMA 0.999 weights."""
    torch.manual_seed(seed)
    model = SudokuNet()
    carried, average = Carried(model, method, data["train"], batch, seed), WeightAverage(model, 0.999)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
    started, losses = time.perf_counter(), []
    for step in itertools.count():
        if step == steps or (steps is None and time.perf_counter() - started > seconds):
            break
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100)
        loss = carried.loss()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.update(model)
        losses.append(float(loss.detach()))
    spent, best = time.perf_counter() - started, copy.deepcopy(model)
    average.copy_to(best)
    return {
        "method": method.name,
        "cycles x micro-steps": f"{method.n_cycles} x {method.n_micro_steps}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": spent,
        "steps": len(losses),
        "first loss": losses[0],
        "last loss": sum(losses[-20:]) / len(losses[-20:]),
        "train": solved_share(best, method, data["train"]),
        "unseen": solved_share(best, method, data["unseen"]),
        "unseen grids": solved_share(best, method, data["unseen grids"]),
    }


def run(quick: bool = False, *, seconds: float = 240.0, seed: int = 0) -> list[dict]:
    """A row for each method, each trained for `seconds` on the same 1,000 puzzles; quick: for 50 steps."""
    data = make_data(n_train=1000, n_test=528, seed=seed)
    return [train(method, data, seconds=seconds, steps=50 if quick else None, seed=seed) for method in METHODS]


if __name__ == "__main__":
    main(__doc__.splitlines()[0], run)
