"""Difficulty by position, and thoughts that keep their distance."""

import pytest
import torch
from tiny_thinkers import MASK, thinker, three_texts

from forgelib.thoughts import Difficulty, choose_positions, difficulty

NAN = float("nan")


@pytest.mark.parametrize("n", [1, 3, 10])
@pytest.mark.parametrize("gap", [1, 3, 5])
def test_positions_keep_their_distance_and_take_the_most_difficult_first(n, gap):
    score = torch.rand(20, 30, generator=torch.Generator().manual_seed(0))
    for row, found in zip(score, choose_positions(score, n, gap), strict=True):
        chosen = found[found >= 0]
        assert int(row.argmax()) in chosen and (chosen.diff() >= gap).all() and len(found) == n
        assert (found[len(chosen) :] == -1).all()
        if len(chosen) < n:  # full: no further position is far enough from all of them
            distance = (torch.arange(30)[:, None] - chosen).abs().amin(1)
            assert (distance < gap).all()


def test_by_default_three_tokens_lie_between_one_thought_and_the_next():
    assert choose_positions(torch.arange(7.0)[None], 9).tolist() == [[0, 3, 6] + [-1] * 6]


def test_greedy_choice_worked_by_hand():
    score = torch.tensor([[0.1, 0.9, 0.8, 0.7, 0.6, NAN], [NAN, NAN, 0.2, NAN, NAN, NAN]])
    assert choose_positions(score, 3).tolist() == [[1, 4, -1], [2, -1, -1]]
    assert choose_positions(score, 1).tolist() == [[1], [2]]
    with pytest.raises(ValueError, match="n = 0"):
        choose_positions(score, 0)


@pytest.mark.parametrize("family", ["llama, eager", "gpt2, eager"])
def test_parts_are_what_they_say(family):
    model, ids = thinker(family), three_texts()
    found = difficulty(model, ids, MASK)
    assert set(found.parts) == {"entropy", "loss", "dispersion"} and not found.left_out
    text = ids[1:2, 4:]  # the second text without its padding
    output = model(input_ids=text, output_attentions=True)
    log_probs = output.logits[0].log_softmax(-1)
    entropy = torch.distributions.Categorical(logits=output.logits[0]).entropy() / torch.log(torch.tensor(37.0))
    torch.testing.assert_close(found.parts["entropy"][1, 4:], entropy, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.parts["loss"][1, 4:8], 1 - log_probs[:-1].gather(1, text[0, 1:, None])[:, 0].exp())
    spread = torch.stack([torch.distributions.Categorical(probs=a[0]).entropy() for a in output.attentions]).mean(
        (0, 1)
    )
    torch.testing.assert_close(
        found.parts["dispersion"][1, 5:], (spread[1:] / torch.arange(2.0, 6).log()), atol=1e-5, rtol=0
    )
    assert found.parts["dispersion"][1, 4] == 0


@pytest.mark.parametrize("family", ["llama, eager", "llama", "cognate"])
def test_the_score_lies_between_0_and_1_on_text_and_nowhere_else(family):
    model, ids = thinker(family), three_texts()
    found = difficulty(model.train(), ids, MASK)
    assert torch.equal(found.score.isfinite(), MASK.bool()) and model.training
    inside = found.score[MASK.bool()]
    assert ((inside >= 0) & (inside <= 1)).all() and float(inside.std()) > 0.01
    chosen = choose_positions(found.score, 3)
    assert MASK.gather(1, chosen.clamp_min(0))[chosen >= 0].all()


def test_a_part_that_a_model_cannot_give_is_left_out_with_its_reason():
    plain, recurrent = (difficulty(thinker(name), three_texts(), MASK) for name in ("llama", "cognate"))
    assert "eager" in plain.left_out["dispersion"] and "no attentions" in recurrent.left_out["dispersion"]
    assert set(plain.parts) == {"entropy", "loss"}
    torch.testing.assert_close(plain.score[0, :8], (plain.parts["entropy"] + plain.parts["loss"])[0, :8] / 2)
    torch.testing.assert_close(plain.score[0, 8], plain.parts["entropy"][0, 8])  # nothing follows: no loss


def test_without_loss_the_score_does_not_look_ahead():
    model, ids = thinker("llama, eager"), three_texts()
    other = ids.clone()
    other[:, 6] = other[:, 6] % 36 + 1
    one, two = (difficulty(model, x, MASK) for x in (ids, other))
    assert isinstance(one, Difficulty)
    torch.testing.assert_close(one.without("loss").score[0, :6], two.without("loss").score[0, :6], atol=1e-5, rtol=0)
    assert not torch.allclose(one.score[0, :6], two.score[0, :6], atol=1e-5)
    assert one.without("loss", "generating").left_out["loss"] == "generating"
