"""The Sudoku bench in small: its puzzles are what it says, and a few steps of each method learn."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from bench import sudoku


def test_there_are_288_grids_and_a_puzzle_has_one_solution():
    grids = sudoku.solutions((0,) * 16, 1000)
    assert len(grids) == len(set(grids)) == 288
    assert all(sorted(grid[i] for i in unit) == [1, 2, 3, 4] for grid in grids[::40] for unit in sudoku.UNITS)
    data = sudoku.make_data(30, 10, seed=0)
    for name, (cells, answers) in data.items():
        assert len(cells) == (30 if name == "train" else 10)
        for puzzle, answer in zip(cells.tolist(), answers.tolist(), strict=True):
            assert sudoku.solutions(tuple(puzzle), 2) == [tuple(digit + 1 for digit in answer)]
            assert 4 <= 16 - puzzle.count(0) < 16


def test_unseen_means_unseen():
    data = sudoku.make_data(60, 40, seed=1)
    puzzles = [tuple(row) for part in data.values() for row in part.cells.tolist()]
    assert len(puzzles) == len(set(puzzles)) == 140
    grids = {name: {tuple(row) for row in part.answers.tolist()} for name, part in data.items()}
    assert not grids["unseen grids"] & (grids["train"] | grids["unseen"])


@pytest.mark.parametrize("name", [method.name for method in sudoku.METHODS])
def test_a_few_steps_lower_the_loss(name):
    method = next(method for method in sudoku.METHODS if method.name == name)
    row = sudoku.train(method, sudoku.make_data(20, 5, seed=0), seconds=0.0, steps=30, seed=0, batch=8, lr=5e-3)
    assert row["steps"] == 30 and 70_000 < row["parameters"] < 76_000
    assert row["last loss"] < row["first loss"] and 0 <= row["unseen"] <= 1


def test_only_the_last_cycle_has_a_gradient_and_the_state_is_carried():
    torch.manual_seed(0)
    model, method = sudoku.SudokuNet(), sudoku.METHODS[-1]
    x, (y, z) = model.read(torch.zeros(2, 16, dtype=torch.long)), model.start(2)
    with torch.no_grad():
        before_last = y, z
        for _ in range(2):
            before_last = sudoku.refine(model.net, x, *before_last, 2)
        expected = sudoku.refine(model.net, x, *before_last, 2)
    for ours, by_hand in zip(method.improve(model, x, y, z), expected, strict=True):
        torch.testing.assert_close(ours, by_hand)
    start = y.clone().requires_grad_()
    new_y, _ = method.improve(model, x, start, z)
    assert torch.autograd.grad(new_y.sum(), start, allow_unused=True)[0] is None
    carried = sudoku.Carried(model, method, sudoku.make_data(20, 5, seed=0)["train"], batch=8, seed=0)
    carried.loss()
    first = carried.y
    carried.loss()
    assert not carried.y.requires_grad and not torch.equal(first, carried.y)


def test_a_puzzle_leaves_after_its_last_supervision_step():
    torch.manual_seed(0)
    model, puzzles = sudoku.SudokuNet(), sudoku.make_data(40, 5, seed=0)["train"]
    carried = sudoku.Carried(model, sudoku.METHODS[1], puzzles, batch=4, seed=0)
    seen = []
    for _ in range(17):  # the halting logit starts at -5: nobody leaves early
        carried.loss()
        seen.append(carried.rows.tolist())
    assert all(rows == seen[0] for rows in seen[:16]) and seen[16] != seen[0]
