"""Thoughts read again say what sampling said, with the gradient of the plain computation and little memory."""

import pytest
import torch
from tiny_thinkers import (
    CONTEXT,
    FAMILIES,
    MASK,
    VOCABULARY,
    logits_alone,
    prefix_of,
    real_places,
    thinker,
    three_texts,
)

from forgelib.thoughts import ThoughtConfig, read_thoughts, sample_thoughts, then_text, thought_log_probs

CONFIG = ThoughtConfig(n_thoughts=3, length=6, start=(5,), end=7, temperature=1.3, top_p=0.9)


def thoughts_of(model, ids, config=CONFIG, **options):
    return sample_thoughts(model, ids, MASK, config, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_returns_what_sampling_returned(family):
    model, ids = thinker(family), three_texts()
    thoughts = thoughts_of(model, ids)
    full = thought_log_probs(model, ids, MASK, thoughts)
    own = thought_log_probs(model, ids, MASK, thoughts, temperature=1.3, top_p=0.9)
    torch.testing.assert_close(full, thoughts.log_probs, atol=1e-4, rtol=0)
    torch.testing.assert_close(own, thoughts.policy_log_probs, atol=1e-4, rtol=0)
    assert not full[~thoughts.drawn].any() and (full[thoughts.drawn] < 0).all()
    assert float((thoughts.log_probs - thoughts.policy_log_probs).abs().max()) > 0.01


def plain_loss(model, ids, thoughts, weights):
    """The same weighted sum, thought after thought through the model's own forward pass."""
    total = 0.0
    for row, column in real_places(MASK):
        prefix = prefix_of(ids, MASK, row, column)
        for k in range(thoughts.tokens.shape[2]):
            tokens = thoughts.tokens[row, column, k]
            logits = model(input_ids=torch.cat([prefix, tokens[None]], 1), use_cache=False).logits[0]
            own = logits[prefix.shape[1] - 1 : -1].log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
            total = total + (weights[row, column, k] * own * thoughts.drawn[row, column, k]).sum()
    return total


@pytest.mark.parametrize("family", ["llama", "gpt2, eager", "qwen2, window of 4", "cognate"])
def test_the_gradient_is_that_of_the_plain_computation(family):
    model, ids = thinker(family), three_texts()
    thoughts = thoughts_of(model, ids)
    weights = torch.randn(thoughts.lengths.shape, generator=torch.Generator().manual_seed(1))
    gradients = []
    for loss in (
        (weights[..., None] * thought_log_probs(model, ids, MASK, thoughts)).sum(),
        plain_loss(model, ids, thoughts, weights),
    ):
        model.zero_grad()
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 5
    for name, gradient in gradients[1].items():
        error = float((gradients[0][name] - gradient).norm() / (gradient.norm() + 1e-6))
        assert error < 1e-3, (name, error)


@pytest.mark.parametrize("family", ["llama", "cognate"])
def test_groups_change_memory_and_not_results(family):
    """No more logits than allowed at once, neither on the way there nor back."""
    model, ids, at_once = thinker(family), three_texts(), []
    thoughts = thoughts_of(model, ids)
    whole = read_thoughts(model, ids, MASK, thoughts, elements=2**30)
    model.get_output_embeddings().register_forward_hook(lambda m, i, output: at_once.append(output.numel()))
    small = read_thoughts(model, ids, MASK, thoughts, elements=2 * 6 * VOCABULARY)
    torch.testing.assert_close(whole.log_probs, small.log_probs, atol=1e-4, rtol=0)
    torch.testing.assert_close(whole.end_states, small.end_states, atol=1e-4, rtol=0)
    n_forward = len(at_once)
    small.log_probs.sum().backward()
    assert len(at_once) == 2 * n_forward > 20  # computed again for the gradient, group by group
    assert max(at_once) <= 2 * (6 + 1) * VOCABULARY < thoughts.tokens.numel() * VOCABULARY / 10


@pytest.mark.parametrize("family", FAMILIES)
def test_end_states_are_what_the_head_is_given_after_the_last_token(family):
    model, ids, given = thinker(family), three_texts(), []
    thoughts = thoughts_of(model, ids)
    ends = read_thoughts(model, ids, MASK, thoughts).end_states
    model.get_output_embeddings().register_forward_pre_hook(lambda m, inputs: given.append(inputs[0]))
    for row, column in real_places(MASK):
        for k in range(3):
            n = int(thoughts.lengths[row, column, k])
            text = torch.cat([prefix_of(ids, MASK, row, column), thoughts.tokens[row, column, k, None, :n]], 1)
            model(input_ids=text, use_cache=False)
            torch.testing.assert_close(ends[row, column, k], given[-1][0, -1], atol=1e-4, rtol=1e-4)
    assert not ends[~MASK.bool()].any()


@pytest.mark.parametrize("family", ["llama", "gpt2", "cognate"])
def test_a_thought_followed_by_its_text_foretells_it_as_the_plain_model_does(family):
    model, ids = thinker(family), three_texts()
    thoughts = thoughts_of(model, ids)
    log_probs = thought_log_probs(model, ids, MASK, then_text(thoughts, ids, MASK, 3)).sum(-1)
    for row, column in real_places(MASK):
        ahead = [c for c in range(column + 1, min(9, column + 4)) if MASK[row, c]]
        for k in range(3):
            n = int(thoughts.lengths[row, column, k])
            prefix = torch.cat([prefix_of(ids, MASK, row, column), thoughts.tokens[row, column, k, None, :n]], 1)
            future = ids[row, ahead]
            expected = torch.zeros(())
            if ahead:
                expected = logits_alone(model, prefix, future).log_softmax(-1).gather(-1, future[:, None]).sum()
            torch.testing.assert_close(log_probs[row, column, k], expected, atol=3e-4, rtol=0)


def test_what_does_not_fit_the_context_is_refused_and_what_just_fits_is_read():
    for family in ("gpt2", "llama"):
        model, ids = thinker(family), three_texts()
        config = ThoughtConfig(1, CONTEXT - 9, temperature=0.0)
        thoughts = sample_thoughts(model, ids, MASK, config)
        following = then_text(thoughts, ids, MASK, 2)
        assert (
            thought_log_probs(model, ids, MASK, following).isfinite().all()
        )  # 9 + 31 tokens, wherever the thought stands
        longer = torch.cat([ids, ids[:, :1]], 1), torch.cat([MASK, MASK[:, :1]], 1)
        with pytest.raises(ValueError, match=r"after \d+ of text make 41"):
            thought_log_probs(model, *longer, then_text(thoughts, *longer, 2))
    with pytest.raises(ValueError, match="n_ahead = 0"):
        then_text(thoughts, ids, MASK, 0)


def test_in_training_mode_a_model_that_halts_still_says_what_it_sampled():
    """And its attention logits are seen, so that QK-Clip can act."""
    model, ids = thinker("cognate"), three_texts()
    thoughts = thoughts_of(model, ids)
    again = thought_log_probs(model.train(), ids, MASK, thoughts)
    torch.testing.assert_close(again, thoughts.log_probs, atol=1e-4, rtol=0)
    assert model.model.blocks[0].attention.max_logits is not None and model.training
