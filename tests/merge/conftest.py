"""A trunk and three parents for the tests of the merge room."""

import pytest
import torch
from small_weights import weights


@pytest.fixture(scope="session")
def trunk() -> dict[str, torch.Tensor]:
    return weights(0)


@pytest.fixture(scope="session")
def parents(trunk) -> list[dict[str, torch.Tensor]]:
    """Three that lie far enough apart that SLERP does not fall back to the straight line."""
    return [weights(seed, trunk, step) for seed, step in ((1, 0.6), (2, 0.8), (3, 0.7))]
