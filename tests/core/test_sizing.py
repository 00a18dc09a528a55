"""The size classes of METHOD, and a count of parameters that counts tied ones once."""

import pytest
from torch import nn

from forgelib.core.sizing import SIZE_CLASSES, count_parameters, size_class


@pytest.mark.parametrize(
    "n, name",
    [
        *((1, "tiny"), (25_000_000, "tiny"), (49_999_999, "tiny"), (50_000_000, "small"), (499_999_999, "small")),
        *((500_000_000, "medium"), (1_999_999_999, "medium"), (2_000_000_000, "large"), (10**12, "large")),
    ],
)
def test_the_class_of_a_size(n, name):
    assert size_class(n).name == name


def test_the_numbers_of_the_method():
    assert [c.batch_size for c in SIZE_CLASSES] == [32, 16, 8, 4]
    assert [c.compression_target for c in SIZE_CLASSES] == [6.0, 8.0, 10.0, 12.0]
    assert [c.sparsity_threshold for c in SIZE_CLASSES] == [0.05, 0.10, 0.15, 0.20]
    assert [c.expected_sparsity for c in SIZE_CLASSES] == [0.25, 0.35, 0.40, 0.45]
    assert [(c.n_thoughts, c.thought_length) for c in SIZE_CLASSES] == [(8, 20), (6, 15), (4, 12), (4, 10)]


@pytest.mark.parametrize("n", [0, -1])
def test_no_parameters_is_no_model(n):
    with pytest.raises(ValueError, match="n_parameters"):
        size_class(n)


def test_tied_weights_count_once():
    head, embedding = nn.Linear(8, 100, bias=False), nn.Embedding(100, 8)
    assert count_parameters(nn.ModuleList([embedding, head])) == 1600
    head.weight = embedding.weight
    assert count_parameters(nn.ModuleList([embedding, head])) == 800
