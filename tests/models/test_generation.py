"""Generation with a cache equals generation without one: window, memory, recursion and halting all carried along."""

import pytest
import torch
from transformers import DynamicCache

PROMPT, NEW = 11, 10
SETTINGS = {
    "window shorter than the text": {"window": 4},
    "window longer than the text": {"window": 64},
    "window of one token": {"window": 1},
    "no memory": {"memory_layers": []},
    "no convolution": {"conv_kernel": 1},
    "never halts": {"act_threshold": 0.9999},
}


def mask_of(padding, length=PROMPT):
    return torch.stack([torch.arange(length) >= n for n in padding]).long()


def assert_logits_equal(one, other):
    for a, b in zip(one.logits, other.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def generate(model, ids, mask, **settings):
    settings = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None} | settings
    return model.generate(
        input_ids=ids, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **settings
    )


@pytest.mark.parametrize("padding", [(0,), (0, 4, 9)])
@pytest.mark.parametrize("setting", SETTINGS)
def test_cached_generation_equals_uncached(tiny, text, setting, padding):
    model, mask = tiny(**{"act_threshold": 0.6, **SETTINGS[setting]}), mask_of(padding)
    ids = text(len(padding), PROMPT) * mask
    cached, uncached = (generate(model, ids, mask, use_cache=use) for use in (True, False))
    assert (cached.sequences == uncached.sequences).all()
    assert_logits_equal(cached, uncached)


def test_generation_really_uses_the_cache(tiny, text):
    model, seen = tiny(), []
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    generate(model, text(1, PROMPT), mask_of((0,)))
    assert seen == [PROMPT] + [1] * (NEW - 1)


def test_left_padded_rows_generate_what_they_generate_alone(tiny, text):
    model, padding = tiny(act_threshold=0.6), (0, 4, 9)
    ids = text(3, PROMPT)
    together = generate(model, ids * mask_of(padding), mask_of(padding)).sequences[:, PROMPT:]
    for row, n in enumerate(padding):
        alone = generate(model, ids[row : row + 1, n:], mask_of((0,), PROMPT - n)).sequences[:, PROMPT - n :]
        assert (together[row] == alone[0]).all()


@pytest.mark.parametrize("sizes", [[11], [1] * 11, [3, 3, 5], [7, 4], [2, 9]])
@pytest.mark.parametrize("padding", [(0, 0), (0, 5)])
def test_a_prompt_fed_in_pieces_gives_the_same_logits(tiny, text, sizes, padding):
    model, mask = tiny(act_threshold=0.6), mask_of(padding)
    ids = text(2, PROMPT) * mask
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask, use_cache=False)
        assert whole.past_key_values is None
        cache, logits, start = None, [], 0
        for size in sizes:
            stop = start + size
            part = model(
                input_ids=ids[:, start:stop], attention_mask=mask[:, :stop], past_key_values=cache, use_cache=True
            )
            cache, start = part.past_key_values, stop
            logits.append(part.logits)
    text_only = mask.bool()
    torch.testing.assert_close(torch.cat(logits, 1)[text_only], whole.logits[text_only], atol=5e-5, rtol=0)
    assert cache.get_seq_length() == PROMPT


def test_chunked_prefill_generates_the_same_text(tiny, text):
    model, mask = tiny(), mask_of((0, 4))
    ids = text(2, PROMPT) * mask
    pieces = generate(model, ids, mask, prefill_chunk_size=4)
    assert (pieces.sequences == generate(model, ids, mask).sequences).all()


@pytest.mark.parametrize("padding", [(0,), (0, 4)])
def test_beam_search_with_a_cache_equals_beam_search_without(tiny, text, padding):
    model, mask = tiny(act_threshold=0.6), mask_of(padding)
    ids = text(len(padding), PROMPT) * mask
    found = [
        generate(model, ids, mask, num_beams=3, max_new_tokens=12, use_cache=use).sequences for use in (True, False)
    ]
    assert (found[0] == found[1]).all()


def test_sampling_several_texts_of_one_prompt(tiny, text):
    torch.manual_seed(0)
    out = generate(tiny(), text(2, PROMPT), mask_of((0, 0)), do_sample=True, num_return_sequences=3, top_k=0)
    assert out.sequences.shape == (6, PROMPT + NEW) and len({tuple(row.tolist()) for row in out.sequences}) == 6


def test_the_cache_does_not_grow_with_the_text(tiny, text):
    model = tiny(window=4)
    cache = generate(model, text(2, PROMPT), mask_of((0, 0)), max_new_tokens=60).past_key_values
    assert cache.get_seq_length() == PROMPT + 59
    assert {layer.keys.shape[2] for layer in cache.layers} == {3}


def test_a_reset_cache_starts_anew_and_a_crop_is_refused(tiny, text):
    model, ids = tiny(), text(1, PROMPT)
    with torch.no_grad():
        first = model(input_ids=ids)
        cache = first.past_key_values
        cache.reset()
        again = model(input_ids=ids, past_key_values=cache)
    assert (first.logits == again.logits).all()
    with pytest.raises(NotImplementedError, match="cannot forget single tokens"):
        cache.crop(3)


def test_a_foreign_cache_is_refused_once_it_holds_text(tiny, text):
    foreign = DynamicCache()
    tiny()(input_ids=text(1, 3), past_key_values=foreign)  # an empty one is replaced
    foreign.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8), 0)
    with pytest.raises(ValueError, match="continues from a CognateCache"):
        tiny()(input_ids=text(1, 3), past_key_values=foreign)
