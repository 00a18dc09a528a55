"""Looking at thoughts while a model is trained: their coherence by its definition, their time, and no trace left."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from forgelib.data import vocabulary
from forgelib.data.tokenizer import train_bpe
from forgelib.data.traces import procedural_rows
from forgelib.evaluate import theater
from forgelib.evaluate.text_thinker import TextThinker
from forgelib.phases.observation import coherence, latency_ms, observe
from forgelib.thoughts import add_vocabulary

WORDS = vocabulary("forge-12")
ROWS = procedural_rows(20, WORDS, seed=0, strategies=["chain_of_thought"])
PROMPTS = [row.prompt for row in ROWS[:3]]


@pytest.fixture(scope="module")
def thinking():
    tokenizer = train_bpe([row.text for row in ROWS], 280)[0]
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes))
    add_vocabulary(model, tokenizer, WORDS)
    return TextThinker(model.eval(), tokenizer, WORDS, max_thought_tokens=6, max_answer_tokens=3)


def test_the_parts_are_those_of_their_definition(thinking):
    thoughts = thinking.think(PROMPTS, n=4, seed=0)
    parts = coherence(thinking, PROMPTS, thoughts)
    assert parts.semantic.shape == parts.syntactic.shape == parts.predictive.shape == (3, 4)
    answers = [thinking.answer([prompt] * 4, own) for prompt, own in zip(PROMPTS, thoughts, strict=True)]
    np.testing.assert_allclose(parts.predictive, theater.agreement(answers))

    before = thinking.tokenizer(PROMPTS[1], add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*before, *thoughts[1][2]]])
    with torch.no_grad():
        states = thinking.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    cosine = torch.cosine_similarity(states[len(before) :].mean(0), states[: len(before)].mean(0), dim=0)
    assert parts.semantic[1, 2] == pytest.approx((1 + float(cosine)) / 2, abs=1e-5)


def test_latency_is_the_median_of_the_fastest(thinking, monkeypatch):
    """Three questions, two repeats; the clock is read before and after each."""
    seconds = iter([0, 9, 10, 12, 20, 23, 30, 31, 40, 44, 50, 55])
    monkeypatch.setattr("forgelib.phases.observation.time.perf_counter", lambda: next(seconds))
    assert latency_ms(thinking, PROMPTS, repeats=2) == 2000.0  # fastest: 1, 2 and 3 seconds


@pytest.mark.parametrize("training", [True, False])
def test_a_look_leaves_nothing_behind(thinking, training):
    model = thinking.model.train(training)
    weights, state = [p.clone() for p in model.parameters()], torch.get_rng_state()
    options = {"max_thought_tokens": 6, "max_answer_tokens": 3}
    found = observe(model, thinking.tokenizer, WORDS, PROMPTS, n_thoughts=3, seed=0, **options)
    parts = ("semantic", "syntactic", "predictive", "composite")
    assert set(found) == {f"coherence_{part}" for part in parts} | {"inference_time_ms"}
    by_hand = sum(w * found[f"coherence_{part}"] for w, part in zip((0.4, 0.3, 0.3), parts, strict=False))
    assert found["coherence_composite"] == pytest.approx(by_hand)
    assert model.training == training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))
    model.eval()
