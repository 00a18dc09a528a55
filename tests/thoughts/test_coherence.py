"""Coherence: three parts between 0 and 1, weighted 0.4, 0.3, 0.3."""

import numpy as np
import pytest
import torch

from forgelib.data import vocabulary
from forgelib.thoughts import Coherence, semantic_coherence, syntactic_coherence

WORDS = vocabulary("forge-12")


def test_semantic_coherence_is_the_angle_between_the_means():
    context = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [9.0, 9.0]]])
    seen = torch.tensor([[True, True, False]])
    for direction, expected in (
        ([2.0, 0.0], 1.0),
        ([-1.0, 0.0], 0.0),
        ([0.0, 5.0], 0.5),
        ([1.0, 1.0], 0.5 + 0.125**0.5),
    ):
        thought = torch.tensor([[direction, [7.0, -7.0]]])
        found = semantic_coherence(thought, torch.tensor([[True, False]]), context, seen)
        torch.testing.assert_close(found, torch.tensor([expected]))
    empty = semantic_coherence(context, seen & False, context, seen)
    assert float(empty) == 0.5


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[thinking]<step> 3 + 4 = 7<doubt> 7 - 4 = 3[/endthinking] 7", 1.0),
        ("[thinking]<step> 3 + 4 = 7", 0.5),  # never closed: one of two marks
        ("[thinking]<step> 3 + 4 = 7<doubt>[/endthinking] 7", 0.75),  # a tag without a text
        ("[thinking][thinking]<step> a[/endthinking]", 0.5),  # opened twice, and so never closed
        ("<step> 3[/endthinking]", 0.0),  # never opened
        ("7", 0.0),
        ("", 0.0),
    ],
)
def test_syntactic_coherence_is_the_share_of_marks_in_order(text, expected):
    assert syntactic_coherence(text, WORDS) == expected


@pytest.mark.parametrize("name", ["forge-12", "forge-8", "startofthought"])
def test_every_vocabularys_own_writing_is_in_order(name):
    words = vocabulary(name)
    assert syntactic_coherence(f"Q {words.write([(words.step, 'a'), (words.step, 'b')])} A", words) == 1.0


def test_the_composite_weighs_4_3_3():
    np.testing.assert_allclose(Coherence(*np.eye(3)).composite, [0.4, 0.3, 0.3])
    np.testing.assert_allclose(Coherence(1.0, 1.0, 1.0).composite, 1.0)
    for bad in (np.array([0.5, 1.2]), np.array([0.5, np.nan])):
        with pytest.raises(ValueError, match="syntactic coherence must lie between 0 and 1"):
            Coherence(np.zeros(2), bad, np.zeros(2))
