"""The cursor: deterministic, exactly resumable, the same rows whatever the number of processes, shares as asked."""

import pytest
import torch

from forgelib.data import BatchCursor, DataError

WEIGHTS = {"math": 0.5, "qa": 0.3, "code": 0.2}


def make_pools(sizes=None, length=6):
    """Row k of a category holds only the number 1000 * category + k."""
    sizes = sizes or {"math": 13, "qa": 7, "code": 5}
    return {
        name: (1000 * number + torch.arange(size, dtype=torch.int32))[:, None].repeat(1, length)
        for number, (name, size) in enumerate(sizes.items())
    }


def rows_read(cursor, steps):
    return torch.cat([cursor.next_batch()[:, 0] for _ in range(steps)])


def test_batches_are_int64_rows_of_the_pools():
    batch = BatchCursor(make_pools(), WEIGHTS, 4, seed=1).next_batch()
    assert batch.shape == (4, 6) and batch.dtype == torch.int64


def test_the_same_seed_reads_the_same_rows_and_another_seed_others():
    first, again, other = (rows_read(BatchCursor(make_pools(), WEIGHTS, 4, seed), 20) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("stop", [1, 9, 30])
def test_a_restored_cursor_goes_on_as_if_never_stopped(stop):
    straight = BatchCursor(make_pools(), WEIGHTS, 4, seed=3)
    rows_read(straight, stop)
    restored = BatchCursor(make_pools(), WEIGHTS, 4, seed=3)
    restored.load_state_dict(straight.state_dict())
    assert torch.equal(rows_read(straight, 25), rows_read(restored, 25))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_together_read_what_one_process_reads(world):
    alone = BatchCursor(make_pools(), WEIGHTS, 8, seed=5)
    ranks = [
        BatchCursor(make_pools(), WEIGHTS, 8 // world, seed=5, rank=rank, world_size=world) for rank in range(world)
    ]
    for _ in range(30):
        assert torch.equal(alone.next_batch(), torch.cat([cursor.next_batch() for cursor in ranks]))


def test_every_pass_reads_each_row_once_in_a_new_order():
    cursor = BatchCursor(make_pools({"math": 12}), {"math": 1.0}, 4, seed=7)
    passes = [rows_read(cursor, 3).tolist() for _ in range(3)]
    assert all(sorted(one) == list(range(12)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_categories_come_in_the_asked_shares():
    cursor = BatchCursor(make_pools(), WEIGHTS, 10, seed=11)
    categories = rows_read(cursor, 400) // 1000
    shares = torch.bincount(categories, minlength=3) / len(categories)
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)  # 4,000 draws: standard error below 0.008


def test_the_next_stage_starts_afresh_and_resumes_too():
    later = make_pools({"math": 4, "qa": 4}, length=12)
    cursor = BatchCursor(make_pools(), WEIGHTS, 4, seed=13)
    rows_read(cursor, 5)
    cursor.set_pools(later, {"math": 1, "qa": 1})
    assert cursor.next_batch().shape == (4, 12)
    restored = BatchCursor(make_pools(), WEIGHTS, 4, seed=13)
    with pytest.raises(DataError, match="set the pools of the saved stage"):
        restored.load_state_dict(cursor.state_dict())
    restored.set_pools(later, {"math": 1, "qa": 1})
    restored.load_state_dict(cursor.state_dict())
    assert torch.equal(rows_read(cursor, 10), rows_read(restored, 10))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"weights": {"math": 1, "language": 1}}, "language"),
        ({"weights": {"math": 0}}, "nothing"),
        ({"batch_size": 0}, "batch_size"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"pools": {**make_pools(), "qa": torch.zeros(3, 9)}}, "one row length"),
        ({"pools": {**make_pools(), "qa": torch.zeros(0, 6)}}, "non-empty"),
    ],
)
def test_what_cannot_be_read_is_refused(change, message):
    arguments = {"pools": make_pools(), "weights": WEIGHTS, "batch_size": 4, "seed": 1, **change}
    with pytest.raises(DataError, match=message):
        BatchCursor(**arguments)


def test_a_state_of_another_seed_is_refused():
    cursor = BatchCursor(make_pools(), WEIGHTS, 4, seed=1)
    with pytest.raises(DataError, match="seed 1"):
        BatchCursor(make_pools(), WEIGHTS, 4, seed=2).load_state_dict(cursor.state_dict())
