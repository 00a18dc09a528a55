"""Nothing before a token depends on it: the whole model, in training and in evaluation, memory and halting included."""

import pytest
import torch

LENGTH = 19
MODES = {
    "training": {"train": True, "halt": False},
    "training that halts": {"train": True, "halt": True},
    "evaluation without halting": {"train": False, "halt": False},
    "evaluation that halts": {"train": False, "halt": True},
}


def outputs(model, ids, halt, **inputs):
    with torch.no_grad():
        output = model(input_ids=ids, halt=halt, **inputs)
    return output.logits, output.n_cycles


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", [0, 3, 8, 17])
@pytest.mark.parametrize("window", [4, 50])
def test_a_changed_token_changes_no_logit_before_it(tiny, text, mode, place, window):
    model = tiny(window=window, act_threshold=0.6).train(MODES[mode]["train"])
    ids = text(2, LENGTH)
    changed = ids.clone()
    changed[:, place] = (ids[:, place] % 36) + 1
    (one, cycles), (other, other_cycles) = (outputs(model, x, MODES[mode]["halt"]) for x in (ids, changed))
    moved = (one - other).abs().amax((0, 2))
    assert moved[:place].sum() == 0 or moved[:place].max() < 1e-5
    assert moved[place] > 1e-3, "the check sees a change where there is one"
    assert (cycles[:, :place] == other_cycles[:, :place]).all()


def test_the_end_of_a_text_feels_its_beginning_through_the_memory_alone(tiny, text):
    model, ids = tiny(window=3, n_layers=1), text(1, 40)
    changed = ids.clone()
    changed[:, 2] = (ids[:, 2] % 36) + 1
    reach = (3 - 1) + (4 - 1) + 2 * (3 - 1)
    for use_memory in (True, False):
        model.model.use_memory = use_memory
        moved = (outputs(model, ids, False)[0] - outputs(model, changed, False)[0]).abs().amax((0, 2))
        assert (moved[2 + reach + 1 :].max() > 1e-4) == use_memory


@pytest.mark.parametrize("halt", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_rows_of_a_batch_do_not_see_each_other(tiny, text, halt, train):
    model, ids = tiny(act_threshold=0.6).train(train), text(3, LENGTH)
    together, cycles = outputs(model, ids, halt)
    for row in range(3):
        alone, own_cycles = outputs(model, ids[row : row + 1], halt)
        torch.testing.assert_close(together[row : row + 1], alone, atol=5e-5, rtol=0)
        assert (cycles[row] == own_cycles).all()


@pytest.mark.parametrize("window", [4, 50])
@pytest.mark.parametrize("halt", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_a_left_padded_row_equals_the_row_alone(tiny, text, window, halt, train):
    model, ids, padding = tiny(window=window, act_threshold=0.6).train(train), text(3, LENGTH), (0, 5, 13)
    mask = torch.stack([torch.arange(LENGTH) >= n for n in padding]).long()
    padded, cycles = outputs(model, ids * mask, halt, attention_mask=mask)
    for row, n in enumerate(padding):
        alone, own_cycles = outputs(model, ids[row : row + 1, n:], halt)
        torch.testing.assert_close(padded[row : row + 1, n:], alone, atol=5e-5, rtol=0)
        assert (cycles[row : row + 1, n:] == own_cycles).all()


def test_what_stands_at_padding_does_not_matter(tiny, text):
    model, ids = tiny(), text(1, LENGTH)
    mask = (torch.arange(LENGTH) >= 7).long()[None]
    one, other = (outputs(model, torch.where(mask.bool(), ids, x), True, attention_mask=mask)[0] for x in (0, 5))
    torch.testing.assert_close(one[:, 7:], other[:, 7:], atol=1e-6, rtol=0)


def test_chunk_size_changes_speed_and_never_results(tiny, text):
    ids = text(2, LENGTH)
    expected = outputs(tiny(memory_chunk=1), ids, False)[0]
    for chunk in (2, 5, 64):
        torch.testing.assert_close(outputs(tiny(memory_chunk=chunk), ids, False)[0], expected, atol=5e-5, rtol=0)


def test_a_mask_of_more_than_two_dimensions_is_refused(tiny, text):
    with pytest.raises(ValueError, match="attention_mask must be"):
        tiny()(input_ids=text(1, 4), attention_mask=torch.ones(1, 1, 4, 4))
