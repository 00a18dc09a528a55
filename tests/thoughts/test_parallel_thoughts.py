"""Thoughts at all positions at once are the thoughts made one position at a time, for every family of models."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_thinkers import (
    CONTEXT,
    FAMILIES,
    FORKED,
    MASK,
    MASKED,
    VOCABULARY,
    logits_alone,
    prefix_of,
    real_places,
    thinker,
    three_texts,
)

from forgelib.optim.attention_logits import track_attention_logits
from forgelib.thoughts import ThoughtConfig, sample_thoughts
from forgelib.thoughts.causal_lm import CausalLM
from forgelib.thoughts.forked_state import ForkedStates, read_forked_state
from forgelib.thoughts.shared_text import SharedTextForks, read_shared_text

GREEDY = ThoughtConfig(n_thoughts=2, length=6, temperature=0.0)
DRAWN = ThoughtConfig(n_thoughts=3, length=6)


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def sampled(model, ids, mask, config=DRAWN, seed=0, **options):
    return sample_thoughts(model, ids, mask, config, generator=dice(seed), **options)


def same(one, other):
    for name in ("tokens", "mask", "drawn"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in ("log_probs", "policy_log_probs"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_thoughts_everywhere_equal_generation_one_position_at_a_time(family):
    model, ids = thinker(family), three_texts()
    thoughts = sample_thoughts(model, ids, MASK, GREEDY)
    for row, column in real_places(MASK):
        prefix = prefix_of(ids, MASK, row, column)
        plain = model.generate(prefix, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
        for k in range(2):
            assert torch.equal(thoughts.tokens[row, column, k], plain[0, prefix.shape[1] :])
        logits = logits_alone(model, prefix, thoughts.tokens[row, column, 0])
        expected = logits.log_softmax(-1).amax(-1)
        torch.testing.assert_close(thoughts.log_probs[row, column, 1], expected, atol=1e-4, rtol=0)
    assert torch.equal(thoughts.mask.all(-1).all(-1), MASK.bool())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_every_thought_token_equal_those_of_its_prefix_alone(family):
    """By the cached forks that sampling uses, and by the single pass that is read with gradient."""
    model, ids, valid = thinker(family), three_texts(), MASK.bool()
    lm, masked = CausalLM(model), family in MASKED
    assert lm.takes_masks(15) is masked
    tokens = torch.randint(1, VOCABULARY, (*MASK.shape, 2, 5), generator=dice(3))
    columns = torch.arange(9).expand(3, -1)
    rows, places = valid.nonzero(as_tuple=True)
    if masked:
        where, forks = (lambda r, c: (r, c)), SharedTextForks(lm, ids, valid, columns, 2)
        read = torch.stack([read_shared_text(lm, ids, valid, columns, tokens[:, :, k])[0] for k in range(2)], 2)
    else:
        index = {place: i for i, place in enumerate(zip(rows.tolist(), places.tolist(), strict=True))}
        where, columns, tokens = (lambda r, c: (index[r, c], 0)), places[:, None], tokens[rows, places][:, None]
        ids_of, valid_of = ids[rows], valid[rows]
        forks = ForkedStates(lm, ids_of, valid_of, columns, 2)
        some = [read_forked_state(lm, ids_of, valid_of, columns, tokens[:, :, k])[0] for k in range(2)]
        read = torch.stack(some, 2)
    with torch.no_grad():
        steps = [forks.first[:, :, None].expand(-1, -1, 2, -1), None]
        steps += [forks.feed(tokens[..., :2])] + [forks.feed(tokens[..., i : i + 1]) for i in (2, 3)]
    for row, column in real_places(MASK):
        for k in range(2):
            place = (*where(row, column), k)
            alone = logits_alone(model, prefix_of(ids, MASK, row, column), tokens[place])
            torch.testing.assert_close(read[place], alone, atol=1e-4, rtol=0)
            for step in (0, 2, 3, 4):
                torch.testing.assert_close(steps[step][place], alone[step], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_token_changes_no_earlier_thought(family):
    model, ids = thinker(family), three_texts()
    other = ids.clone()
    other[:, 5] = other[:, 5] % (VOCABULARY - 1) + 1
    one, two = sampled(model, ids, MASK), sampled(model, other, MASK)
    assert torch.equal(one.tokens[:, :5], two.tokens[:, :5])
    torch.testing.assert_close(one.log_probs[:, :5], two.log_probs[:, :5], atol=1e-5, rtol=0)
    assert not torch.equal(one.tokens[:, 5:], two.tokens[:, 5:])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_thoughts_and_another_seed_others(family):
    model, ids = thinker(family), three_texts()
    before = torch.get_rng_state()
    one, two, other = (sampled(model, ids, MASK, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.log_probs, two.log_probs)
    assert not torch.equal(one.tokens, other.tokens)
    assert len({tuple(thought.tolist()) for thought in one.tokens[0, 3]}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_padding_nor_the_texts_beside_it_change_a_thought(family):
    model, ids = thinker(family), three_texts()
    alone = sampled(model, ids[:1], None)
    together = sampled(model, ids, MASK)
    wide = torch.nn.functional.pad(ids, (5, 2), value=11)
    padded = sampled(model, wide, torch.nn.functional.pad(MASK, (5, 2)))
    assert torch.equal(alone.tokens[0], together.tokens[0])
    for row, column in real_places(MASK):
        assert torch.equal(together.tokens[row, column], padded.tokens[row, column + 5])
        torch.testing.assert_close(
            together.log_probs[row, column], padded.log_probs[row, column + 5], atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("family", ["llama", "cognate"])
def test_chosen_positions_have_the_greedy_thoughts_they_have_among_all(family):
    model, ids = thinker(family), three_texts()
    everywhere = sample_thoughts(model, ids, MASK, GREEDY)
    positions = torch.tensor([[7, 2, -1], [1, 8, 4], [5, -1, -1]])
    some = sample_thoughts(model, ids, MASK, GREEDY, positions=positions)
    for row, place in (positions >= 0).nonzero().tolist():
        column = int(positions[row, place])
        assert torch.equal(
            some.tokens[row, place] * some.mask[row, place], everywhere.tokens[row, column] * MASK[row, column]
        )
    there = (positions >= 0) & MASK.bool().gather(1, positions.clamp_min(0))
    assert torch.equal(some.mask.all(-1).all(-1), there) and torch.equal(some.mask.any(-1).any(-1), there)
    assert not some.log_probs[~there].any()


@pytest.mark.parametrize("family", ["llama", "cognate"])
def test_small_groups_give_the_same_thoughts(family, monkeypatch):
    model, ids = thinker(family), three_texts()
    whole = sampled(model, ids, MASK)
    monkeypatch.setattr("forgelib.thoughts.sampling.ELEMENTS", 3 * VOCABULARY * 4)
    monkeypatch.setattr("forgelib.thoughts.sampling.PREFIX_TOKENS", 20)
    same(whole, sampled(model, ids, MASK))


@pytest.mark.parametrize("family", ["llama", "gpt2", "cognate"])
def test_thoughts_begin_with_the_start_tokens_and_end_with_the_end_token(family):
    model, ids = thinker(family), three_texts()
    config = ThoughtConfig(n_thoughts=8, length=9, start=(5, 6), end=7, temperature=1.5, top_p=1.0)
    thoughts = sampled(model, ids, MASK, config)
    there = MASK.bool()
    assert (thoughts.tokens[there][..., :2] == torch.tensor([5, 6])).all()
    assert not thoughts.drawn[..., :2].any() and not thoughts.log_probs[..., :2].any()
    ends = thoughts.tokens[there][..., 2:] == 7
    ended = ends.any(-1)
    first = torch.where(ended, ends.to(torch.uint8).argmax(-1) + 3, 9)
    assert torch.equal(thoughts.lengths[there], first) and 0 < int(ended.sum()) < ended.numel()
    after = ~thoughts.mask & there[..., None, None]
    assert (thoughts.tokens[after] == 7).all() and not thoughts.log_probs[after].any()
    begun = torch.cat([ids, torch.full((3, 1), 5), torch.full((3, 1), 6)], 1)[:1]
    alone = model(input_ids=begun).logits[0, -1].log_softmax(-1)
    expected = alone[thoughts.tokens[0, 8, :, 2]]
    torch.testing.assert_close(thoughts.log_probs[0, 8, :, 2], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "cognate"])
def test_one_forward_pass_per_thought_token_and_none_once_all_have_ended(family):
    model, ids, calls = thinker(family), three_texts(), []
    model.register_forward_hook(lambda *_: calls.append(1))
    sample_thoughts(model, ids, MASK, GREEDY)
    assert len(calls) == GREEDY.length
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # every token is as likely as any: greedy takes the first
    calls.clear()
    ended = sample_thoughts(model, ids, MASK, ThoughtConfig(n_thoughts=2, length=20, end=0, temperature=0.0))
    assert len(calls) == 1 and (ended.lengths[MASK.bool()] == 1).all()


def test_thoughts_longer_than_the_context_are_refused():
    for family in ("llama", "gpt2"):
        model, ids = thinker(family), three_texts()
        sample_thoughts(model, ids, MASK, ThoughtConfig(1, CONTEXT - 9, temperature=0.0))
        with pytest.raises(ValueError, match=r"thoughts of 32 tokens after 9 of text make 41, .* context holds 40"):
            sample_thoughts(model, ids, MASK, ThoughtConfig(1, CONTEXT - 8, temperature=0.0))


def test_what_cannot_be_done_is_refused():
    model, ids = thinker("llama"), three_texts()
    with pytest.raises(ValueError, match=r"give a torch\.Generator"):
        sample_thoughts(model, ids, MASK, DRAWN)
    with pytest.raises(ValueError, match="a text of 9 tokens has 0 to 8"):
        sampled(model, ids, MASK, positions=torch.tensor([9]))
    with pytest.raises(ValueError, match="no position holds a token"):
        sampled(model, ids, MASK, positions=torch.tensor([[-1], [0], [8]]))
    with pytest.raises(ValueError, match="a text has no token"):
        sampled(model, ids, MASK * 0)
    for field, value in (("n_thoughts", 0), ("length", 2), ("top_p", 0.0), ("temperature", -1.0)):
        with pytest.raises(ValueError, match=rf"ThoughtConfig\.{field}"):
            ThoughtConfig(**{"start": (1, 2), field: value})


def test_wrapped_by_peft_or_watched_for_qk_clip_a_model_thinks_the_same():
    ids, plain = three_texts(), sampled(thinker("llama"), three_texts(), MASK)
    watched = thinker("llama")
    track_attention_logits(watched)
    same(plain, sampled(watched, ids, MASK))
    adapted = get_peft_model(thinker("llama"), LoraConfig(target_modules=["q_proj", "v_proj"]))  # starts at zero
    assert CausalLM(adapted).takes_masks(15)
    same(plain, sampled(adapted, ids, MASK))


def test_the_models_mode_is_as_it_was():
    for family in ("gpt2", *FORKED):
        model, ids = thinker(family), three_texts()
        still = sampled(model, ids, MASK)
        same(still, sampled(model.train(), ids, MASK))
        assert model.training
