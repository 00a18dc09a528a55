"""Measurements agree with what is known beforehand: a model that can only count, identical models, known spreads."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forgelib.data import Example
from forgelib.evaluate import (
    answer_by_generation,
    behaviour,
    bootstrap_interval,
    by_category,
    constant_guess,
    interleaved_latency,
    losses_per_text,
    mixed_questions,
    mixed_texts,
    perplexity,
    relative_spread,
    share_interval,
    spread_of_means,
)
from forgelib.models import CognateConfig, CognateForCausalLM


@pytest.fixture
def tokenizer():
    letters = {letter: i for i, letter in enumerate(["<pad>", "<eos>", *"abcdefgh", "\n"])}
    tokens = Tokenizer(models.WordLevel(letters, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokens.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>")


class AlphabetModel(LlamaForCausalLM):
    """Always says the next letter: a model whose right answers are known without training."""

    def forward(self, input_ids=None, **kwargs):
        output = super().forward(input_ids=input_ids, **kwargs)
        following = (input_ids + 1).clamp(max=self.config.vocab_size - 1)
        output.logits = 50.0 * torch.nn.functional.one_hot(following, self.config.vocab_size).float()
        return output


def llama(kind=LlamaForCausalLM):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return kind(LlamaConfig(vocab_size=11, **sizes))


def cognate(**changes):
    torch.manual_seed(0)
    return CognateForCausalLM(CognateConfig(vocab_size=11, d_model=16, n_layers=1, n_heads=2, d_ff=32, **changes))


def test_generated_answers_are_compared_up_to_the_line_break(tokenizer):
    answers = answer_by_generation(
        llama(AlphabetModel), tokenizer, ["ab", "c", "fe"], ["cd", "de", "ff"], max_new_tokens=2, batch_size=2
    )
    assert answers.answers == ["cd", "de", "fg"]
    assert answers.correct.tolist() == [True, True, False]
    assert answers.accuracy == pytest.approx(2 / 3)
    ending = answer_by_generation(llama(AlphabetModel), tokenizer, ["f"], ["gh"], max_new_tokens=6)
    assert ending.answers == ["gh"], "what follows the line break is no part of the answer"


def test_answers_need_prompts(tokenizer):
    with pytest.raises(ValueError, match="as many references"):
        answer_by_generation(llama(), tokenizer, [], [])


def example(category, dataset, answer, prompt="?"):
    return Example(prompt, answer, category, dataset, "procedural")


def test_the_guess_without_a_model():
    questions = [example("math", "gsm8k", a) for a in ("4", "4", "5")] + [
        example("qa", "drop", a) for a in ("no", "no ")
    ]
    assert constant_guess(questions).tolist() == [True, True, False, True, True]
    rows = by_category(questions, {"guess": constant_guess(questions)})
    assert rows == [
        {"category": "math", "questions": 3, "guess": 0.667},
        {"category": "qa", "questions": 2, "guess": 1.0},
    ]


def test_texts_and_questions_follow_the_mix():
    pools = {name: torch.full((100, 4), i) for i, name in enumerate(("code", "math", "qa"))}
    texts = mixed_texts(pools, {"code": 0.1, "math": 0.6, "qa": 0.3}, 50, seed=0)
    assert torch.bincount(texts[:, 0]).tolist() == [5, 30, 15]
    heldout = {
        "math": [example("math", "svamp", str(i), str(i)) for i in range(90)],
        "language": [example("language", "x", "")],
    }
    chosen = mixed_questions(heldout, {"math": 0.5, "language": 0.5}, 20, seed=1)
    assert len(chosen) == 20 and {q.category for q in chosen} == {"math"}, "what has no answer is not asked"
    assert chosen == mixed_questions(heldout, {"math": 0.5, "language": 0.5}, 20, seed=1)


def test_losses_agree_with_the_library():
    model, ids = llama(), torch.randint(0, 11, (5, 9))
    ours = losses_per_text(model, ids, batch_size=2)
    theirs = [model.eval()(input_ids=row[None], labels=row[None]).loss.item() for row in ids]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert perplexity(ours) == pytest.approx(np.exp(np.mean(theirs)), rel=1e-5)


def test_spread_is_zero_for_equals_and_known_for_a_line():
    assert relative_spread(2.0, 2.0, 2.0) == 0
    assert relative_spread(1.0, 2.0, 3.0) == 1.0


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    generator, hits = np.random.default_rng(0), 0
    for trial in range(200):
        low, high = bootstrap_interval(np.mean, generator.normal(3.0, 1.0, 50), n_resamples=200, seed=trial)
        hits += low <= 3.0 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_pairs_are_drawn_together():
    x = np.random.default_rng(0).normal(size=100)
    low, high = bootstrap_interval(lambda a, b: float((a - b).mean()), x, x - 1.0, seed=0)
    assert (low, high) == (pytest.approx(1.0), pytest.approx(1.0))
    low, high = bootstrap_interval(lambda a, b: float((a - b).mean()), x, x - 1.0, paired=False, seed=0)
    assert high - low > 0.2


def test_cycles_and_memory_are_measured_per_text():
    ids = torch.randint(0, 11, (5, 8))
    never, always = behaviour(cognate(act_threshold=0.999999), ids), behaviour(cognate(act_threshold=1e-6), ids)
    np.testing.assert_allclose(never.cycles, 3.0)
    np.testing.assert_allclose(always.cycles, 1.0)
    assert not never.sure.any() and always.sure.all() and always.sure.shape == (5 * 7,)
    model = cognate(act_threshold=0.12)
    together, alone = behaviour(model, ids, batch_size=2), [behaviour(model, ids[i : i + 1]) for i in range(5)]
    for name in ("cycles", "horizon", "sure", "right"):
        apart = np.concatenate([getattr(one, name) for one in alone])
        np.testing.assert_allclose(getattr(together, name), apart, rtol=1e-4)
    assert len(set(together.horizon)) == 5, "each text has its own"
    assert together.memory_share == pytest.approx(np.mean([one.memory_share for one in alone]), abs=1e-6)
    assert 0 < together.memory_share < 1


def test_a_token_is_right_where_the_likeliest_next_one_comes():
    ids, model = torch.randint(0, 11, (2, 8)), cognate()
    likeliest = model(input_ids=ids).logits.argmax(-1)
    expected = (likeliest[:, :-1] == ids[:, 1:]).flatten().numpy()
    np.testing.assert_array_equal(behaviour(model, ids).right, expected)


def test_the_horizon_follows_the_forget_gate():
    ids, model = torch.randint(0, 11, (3, 8)), cognate(ltm_tokens=50)
    gates = model.model.blocks[0].memory.gates
    with torch.no_grad():
        gates.weight.zero_()
        gates.bias[-2:] = -100.0  # alpha at its floor 1 / 50 in both heads
    np.testing.assert_allclose(behaviour(model, ids).horizon, 50.0, rtol=1e-4)
    with torch.no_grad():
        gates.bias[-2:] = 0.0  # alpha = 1/50 + 49/50 / 2
    np.testing.assert_allclose(behaviour(model, ids).horizon, 1 / 0.51, rtol=1e-4)


def test_latency_sees_who_recurses_more():
    lazy, eager = cognate(act_threshold=1e-6, max_cycles=6), cognate(act_threshold=0.999999, max_cycles=6)
    latency = interleaved_latency([lazy, eager], torch.randint(0, 11, (6, 16)), n_tokens=8)
    assert latency.shape == (2, 6)
    assert np.median(latency[1]) > 1.5 * np.median(latency[0])
    assert spread_of_means(latency[0], latency[1]) > 0.3


def test_the_interval_of_a_share_says_how_little_a_few_rows_are():
    low, high = share_interval(np.ones(40, bool))
    assert (low, high) == (pytest.approx(40 / (40 + 1.96**2), abs=1e-3), 1.0)
    low, high = share_interval(np.arange(100) < 50)
    assert low == pytest.approx(0.404, abs=1e-3) and high == pytest.approx(0.596, abs=1e-3)  # Wilson (1927)
    with pytest.raises(ValueError, match="at least one"):
        share_interval(np.ones(0, bool))
