"""The recall task: the asked value is in the row, at the stated distance, and cannot be guessed."""

import pytest
import torch

from forgelib.data import DataError, recall_batch


@pytest.mark.parametrize("distance", [9, 40, 100, 120])
def test_the_answer_stands_at_the_stated_distance(distance):
    batch = recall_batch(64, 128, distance, n_keys=8, n_values=5, seed=1)
    ids, rows = batch.input_ids, torch.arange(64)
    query = ids[:, -2]
    assert torch.equal(ids[rows, 126 - distance], query), "the asked key is shown `distance` tokens earlier"
    assert torch.equal(ids[rows, 127 - distance], ids[:, -1]), "its value follows it"
    assert ((ids == query[:, None]).sum(dim=1) == 2).all(), "the key stands nowhere else"
    assert torch.equal(batch.answer_positions, torch.full((64,), 127))
    assert torch.equal(batch.labels[:, -1], ids[:, -1]) and (batch.labels[:, :-1] == -100).all()
    assert int(ids.max()) < batch.vocab_size


def test_without_the_early_pairs_the_answer_is_a_guess():
    batch = recall_batch(4000, 64, 50, n_keys=8, n_values=5, seed=2)
    values, keys = batch.input_ids[:, -1], batch.input_ids[:, -2]
    assert torch.bincount(values - values.min(), minlength=5).float().div(4000).max() < 0.25
    for key in keys.unique():
        counts = torch.bincount(values[keys == key] - values.min(), minlength=5).float()
        assert (counts / counts.sum()).max() < 0.3


def test_the_seed_decides():
    first, again, other = (recall_batch(4, 64, 40, 8, 5, seed).input_ids for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("distance", [8, 121])
def test_a_distance_that_does_not_fit_is_refused(distance):
    with pytest.raises(DataError, match="between 9 and 120"):
        recall_batch(2, 128, distance, n_keys=8, n_values=5, seed=1)


def test_more_pairs_than_keys_are_refused():
    with pytest.raises(DataError, match="n_pairs"):
        recall_batch(2, 128, 40, n_keys=3, n_values=5, seed=1)
