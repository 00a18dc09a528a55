"""A causal language model as a Thinker: the same however it is batched, and what was asked for, token by token."""

import math

import numpy as np
import pytest
import torch
from hand_built import END, WORDS, HandBuilt, letters, problems
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from forgelib.evaluate.text_thinker import TextThinker, as_thinker
from forgelib.models import CognateConfig, CognateForCausalLM

PROMPTS = [row.prompt for row in problems(6, 0)] + [row.prompt for row in problems(6, 0, digits=7)]
SIZES = {"max_thought_tokens": 9, "max_answer_tokens": 4}


def llama(**changes):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=17, initializer_range=0.3, **sizes, **changes))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=17, n_embd=16, n_layer=2, n_head=2, n_positions=64))


def cognate():
    sizes = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32}
    return CognateForCausalLM(CognateConfig(17, **sizes, initializer_range=0.3))


def thinker(make=llama, **changes):
    torch.manual_seed(0)
    return TextThinker(make(), letters(), WORDS, **{**SIZES, **changes})


@pytest.mark.parametrize("make", [llama, gpt2, cognate])
def test_batching_changes_nothing(make):
    """Neither thoughts, nor answers, nor probabilities."""
    prompts = PROMPTS[4:8]
    together, alone = thinker(make, batch_size=64), thinker(make, batch_size=1)
    thoughts = [together.think(prompts, n=2, seed=3), alone.think(prompts, n=2, seed=3)]
    assert thoughts[0] == thoughts[1] != together.think(prompts, n=2, seed=4)
    first = [some[0] for some in thoughts[0]]
    for given in (first, [()] * len(prompts), [None] * len(prompts)):
        assert together.answer(prompts, given) == alone.answer(prompts, given)
        read = [one.log_probs(prompts, given, [["1", "22"]] * len(prompts)) for one in (together, alone)]
        np.testing.assert_allclose(read[0], read[1], atol=1e-4)
    assert together.continuation(prompts) == alone.continuation(prompts)


@pytest.mark.parametrize("make", [llama, cognate])
def test_greedy_thoughts_are_those_written_one_token_at_a_time(make):
    one = thinker(make)
    model, tokenizer, end = one.model.eval(), one.tokenizer, one.tokenizer.get_vocab()[WORDS.end]
    found = one.think(PROMPTS[::4], n=3, seed=0, temperature=0.0)
    for prompt, thoughts in zip(PROMPTS[::4], found, strict=True):
        ids, written = tokenizer(f"{prompt} {WORDS.begin}")["input_ids"], []
        while len(written) < SIZES["max_thought_tokens"] and (not written or written[-1] != end):
            logits = model(torch.tensor([ids + written])).logits[0, -1]
            logits[END] = -math.inf
            written.append(int(logits.argmax()))
        assert thoughts == [tuple(token for token in written if token != end)] * 3


def test_log_probs_are_those_of_the_answer_with_its_end():
    one = thinker()
    thought = (1, 2, 3)
    context = one.tokenizer(f"{PROMPTS[0]} {WORDS.begin}123{WORDS.end}")["input_ids"]
    answer = [*one.tokenizer(" 42")["input_ids"], END]
    logits = one.model(torch.tensor([context + answer])).logits[0].log_softmax(-1)
    expected = sum(logits[len(context) - 1 + i, token].item() for i, token in enumerate(answer))
    read = one.log_probs([PROMPTS[0], PROMPTS[1]], [thought, None], [["42", "7"], ["1"]])
    assert [len(some) for some in read] == [2, 1] and read[0][0] == pytest.approx(expected, abs=1e-4)


def test_it_answers_by_its_thought_and_the_probabilities_say_so():
    one = TextThinker(HandBuilt(0), letters(), WORDS, **SIZES)
    given = [(1, 2, 7)] * len(PROMPTS)
    assert one.answer(PROMPTS, given) == ["7"] * len(PROMPTS)
    assert one.answer(PROMPTS, [None] * len(PROMPTS)) == [prompt[-2] for prompt in PROMPTS]
    assert one.answer(PROMPTS, [()] * len(PROMPTS)) == [prompt[-2] for prompt in PROMPTS]
    read = np.exp(one.log_probs(PROMPTS, given, [["7", "3"]] * len(PROMPTS)))
    np.testing.assert_allclose(read, [[0.85, 0.15 / 9]] * len(PROMPTS), rtol=1e-3)
    rows = problems(20, 0)
    greedy = one.think([row.prompt for row in rows], n=1, seed=0, temperature=0.0)
    answers = one.answer([row.prompt for row in rows], [some[0] for some in greedy])
    assert answers == [row.answer for row in rows]


def test_sampled_thoughts_follow_the_nucleus():
    """One token a thought, 85% on one digit: at top_p = 1 a digit in seven is another one, at 0.8 none is."""
    prompts = [problems(1, 0, digits=2)[0].prompt]
    true = problems(1, 0, digits=2)[0].answer
    shares = {}
    for top_p, temperature in ((1.0, 1.0), (0.8, 1.0), (1.0, 0.2)):
        one = TextThinker(HandBuilt(0), letters(), WORDS, **SIZES, top_p=top_p, batch_size=512)
        drawn = one.think(prompts, n=1000, seed=0, temperature=temperature)[0]
        shares[top_p, temperature] = np.mean([thought == (int(true),) for thought in drawn])
    assert shares[1.0, 1.0] == pytest.approx(0.85, abs=0.04)
    assert shares[0.8, 1.0] == 1.0 and shares[1.0, 0.2] == 1.0


def test_no_global_random_state_takes_part_and_the_model_is_left_as_it_was():
    one = thinker()
    one.model.train()
    own = one.model.generation_config
    torch.manual_seed(1)
    state, first = torch.get_rng_state(), one.think(PROMPTS, n=2, seed=0)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert one.think(PROMPTS, n=2, seed=0) == first
    assert one.model.training and one.model.generation_config is own


def test_shipped_generation_settings_take_no_part():
    one = thinker()
    before = one.think(PROMPTS, n=2, seed=0), one.answer(PROMPTS, [None] * len(PROMPTS))
    one.model.generation_config.repetition_penalty = 5.0
    one.model.generation_config.max_length = 3
    assert (one.think(PROMPTS, n=2, seed=0), one.answer(PROMPTS, [None] * len(PROMPTS))) == before


class Loves(LlamaForCausalLM):
    """Always writes one token."""

    loved = 0

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits[..., self.loved] = 99.0
        return output


def test_what_may_not_be_written_is_not():
    torch.manual_seed(0)
    one = TextThinker(Loves(llama().config), letters(), WORDS, **SIZES)
    one.model.loved = END
    assert all(END not in thought for some in one.think(PROMPTS, n=2, seed=0) for thought in some)
    one.model.loved = one.tokenizer.get_vocab()[WORDS.begin]
    for given in ([(1, 2)] * len(PROMPTS), [None] * len(PROMPTS)):
        assert all(WORDS.begin not in answer for answer in one.answer(PROMPTS, given))
    one.model.loved = one.tokenizer.get_vocab()[WORDS.end]
    assert one.think(PROMPTS, n=2, seed=0) == [[(), ()]] * len(PROMPTS)


def test_a_thought_that_was_cut_off_reads_as_never_closed():
    one = thinker()
    assert not WORDS.read(one.text((1,) * 8)).problems
    assert one.text((1, 2)) == "[thinking]12[/endthinking]"
    assert WORDS.read(one.text((1,) * 9)).problems == ("[thinking] is never closed",)


def test_filler_is_one_token_repeated():
    assert thinker().filler(4) == (12,) * 4
    with pytest.raises(ValueError, match="no token for the filler '#'"):
        thinker(filler="#").filler(3)


def test_a_champion_without_the_vocabulary_can_answer_but_not_think():
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    plain = Tokenizer.from_str(letters().backend_tokenizer.to_str().replace("thinking]", "other]"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<eos>")
    champion = TextThinker(llama(), tokenizer, WORDS, **SIZES)
    assert len(champion.answer(PROMPTS, [None] * len(PROMPTS))) == len(PROMPTS)
    for asked in (lambda: champion.think(PROMPTS, n=1, seed=0), lambda: champion.answer(PROMPTS[:1], [(1,)])):
        with pytest.raises(ValueError, match=r"no token \[thinking\].*add_vocabulary"):
            asked()


def test_what_does_not_fit_is_refused_before_work():
    one = TextThinker(llama(max_position_embeddings=18), letters(), WORDS, **SIZES)
    with pytest.raises(ValueError, match="may take 24 tokens, the model's context has 18"):
        one.think(PROMPTS, n=1, seed=0)
    with pytest.raises(ValueError, match="a thought has 10 tokens, max_thought_tokens is 9"):
        one.answer(PROMPTS[:1], [(1,) * 10])
    with pytest.raises(ValueError, match="got 2, 1"):
        one.answer(PROMPTS[:1], [None, None])
    with pytest.raises(ValueError, match="got 0, 0"):
        one.think([], n=1, seed=0)
    with pytest.raises(ValueError, match="a prompt has no token"):
        one.answer([""], [None])
    for wrong in ({"max_thought_tokens": 0}, {"batch_size": 0}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match="must be at least 1, top_p"):
            thinker(**wrong)


def test_a_thinker_is_taken_as_it_is():
    one = thinker()
    assert as_thinker(one, None, WORDS) is one
    assert as_thinker(one.model, letters(), WORDS, batch_size=3).batch_size == 3


def test_asked_at_once_the_path_without_a_thought_has_the_prompt_that_baking_gave_it():
    """Only that path; a thought follows the prompt as it stands."""
    prompts = [f"{letter}Answer:" for letter in "ab"]
    one, plain = thinker(at_once=True), thinker()
    seen = {
        name: [some._contexts(prompts, [thought] * 2) for thought in (None, (), (1, 2))]
        for name, some in (("one", one), ("plain", plain))
    }
    assert seen["one"][1:] == seen["plain"][1:]
    asked = [one.tokenizer(f"{letter}Answer at once:", add_special_tokens=False)["input_ids"] for letter in "ab"]
    assert seen["one"][0] == asked
