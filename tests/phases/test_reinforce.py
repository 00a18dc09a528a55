"""REINFORCE on thoughts: an unbiased gradient, memory in groups, exact resuming, and no failure that stays silent."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from forgelib.core.loop import Checkpointer
from forgelib.data import ReasoningRow, vocabulary
from forgelib.data.tokenizer import train_bpe
from forgelib.data.traces import procedural_rows
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.phases.policy_step import PolicyStep, Rows, encoded
from forgelib.phases.reinforce import ReinforceConfig, SilentFailure, Watch, reinforce
from forgelib.thoughts import add_vocabulary

WORDS = vocabulary("forge-12")
ROWS = procedural_rows(40, WORDS, seed=0, strategies=["chain_of_thought"])
CONFIG = ReinforceConfig(
    seed=0, episodes=24, batch_size=4, n_thoughts=3, thought_tokens=6, muon_lr=0.01, adamw_lr=0.003, warmup_steps=1
)
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([row.text for row in ROWS], 280)[0]


def llama(n):
    return LlamaForCausalLM(LlamaConfig(vocab_size=n, num_key_value_heads=2, max_position_embeddings=96, **SMALL))


def cognate(n):
    sizes = {"d_model": 16, "d_ff": 24, "n_layers": 1, "n_heads": 2, "window": 8, "memory_chunk": 8}
    return CognateForCausalLM(CognateConfig(vocab_size=n, **sizes))


@pytest.fixture
def thinking(tokenizer):
    """A small model with the vocabulary, and its tokenizer."""

    def make(kind=llama, seed=0):
        torch.manual_seed(seed)
        own = copy.deepcopy(tokenizer)
        model = kind(len(own))
        add_vocabulary(model, own, WORDS)
        return model.eval(), own

    return make


def steps_of(model, tokenizer, tmp_path, config=CONFIG, rows=ROWS, **more):
    reference = copy.deepcopy(model)
    checkpointer = more.pop("checkpointer", None) or Checkpointer(tmp_path / "checkpoints")
    return reinforce(model, reference, tokenizer, WORDS, rows, config, checkpointer=checkpointer, **more)


def gradients(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_the_gradient_is_that_of_the_expected_likelihood(thinking):
    """Thoughts of one drawn token can be counted out: the sum over tokens of p(v) times the answer's log-likelihood
    after v, differentiated through p alone. Many steps meet it on average in four directions, in four standard errors.
    """
    model, tokenizer = thinking()
    start = tokenizer(f" {WORDS.begin}", add_special_tokens=False)["input_ids"]
    config = replace(
        CONFIG, thought_tokens=len(start) + 1, top_p=1.0, kl_coefficient=0.0, gradient_clip=1e9, reward_limit=1e9
    )
    problem, step = encoded(ROWS[0], tokenizer), PolicyStep(model, model, tokenizer, WORDS, config)
    end = tokenizer.convert_tokens_to_ids(WORDS.end)

    p = model(input_ids=torch.tensor([problem.prompt + start])).logits[0, -1].log_softmax(0).exp()
    values = []
    with torch.no_grad():
        for v in range(len(p)):
            closing = [v] if v == end else [v, end]
            ids = torch.tensor([problem.prompt + start + closing + problem.answer])
            told = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
            values.append(told[-len(problem.answer) :].sum())
    model.zero_grad()
    (-(p * torch.stack(values)).sum()).backward()
    analytic = gradients(model).clone()

    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(4, len(analytic), generator=generator)
    directions[0] = analytic / analytic.norm() ** 2
    found = []
    for i in range(300):
        model.zero_grad()
        step([problem] * 4, i)
        found.append(directions @ gradients(model))
    found = torch.stack(found)
    error = found.std(0) / len(found) ** 0.5
    assert bool(((found.mean(0) - directions @ analytic).abs() < 4 * error).all()), (
        found.mean(0),
        directions @ analytic,
    )
    assert float(error[0]) < 0.25, "the test would see a wrong sign"


@pytest.mark.parametrize("kind", [llama, cognate])
def test_answers_are_read_as_the_model_itself_gives_them(thinking, kind):
    model, tokenizer = thinking(kind)
    step, problems = PolicyStep(model, model, tokenizer, WORDS, CONFIG), [encoded(row, tokenizer) for row in ROWS[:4]]
    thoughts = step.think(problems, 0)
    rows = step.rows(problems, thoughts)
    assert len(rows.input_ids) == len(set(rows.of.flatten().tolist()))
    found, right = (read[rows.of].flatten() for read in step.answers(rows))
    for n, (b, k) in enumerate(itertools.product(range(4), range(3))):
        real = thoughts.tokens[b, 0, k][thoughts.mask[b, 0, k]].tolist()
        closed = real if real[-1] == step.thinking.end else [*real, step.thinking.end]
        ids = torch.tensor([problems[b].prompt + closed + problems[b].answer])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        told, n_answer = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0], len(problems[b].answer)
        assert float(found[n]) == pytest.approx(float(told[-n_answer:].sum()), abs=1e-4)
        assert bool(right[n]) == bool((logits.argmax(-1) == ids[0, 1:])[-n_answer:].all())


@pytest.mark.parametrize("kind", [llama, cognate])
def test_groups_change_memory_and_no_gradient(thinking, kind):
    found = []
    for rows_at_once in (1, 5, 64):
        model, tokenizer = thinking(kind)
        config = replace(CONFIG, rows_at_once=rows_at_once)
        reference = kind(len(tokenizer)).eval()
        PolicyStep(model, reference, tokenizer, WORDS, config)([encoded(row, tokenizer) for row in ROWS[:4]], 0)
        found.append(gradients(model))
    assert torch.allclose(found[0], found[1], atol=1e-6) and torch.allclose(found[0], found[2], atol=1e-6)
    assert float(found[0].norm()) > 0


def test_thoughts_that_are_the_same_count_as_often_as_they_were_drawn(thinking):
    """One row for each different thought, or one for each thought: the same gradient, KL and likelihoods."""
    model, tokenizer = thinking()
    reference, problems = llama(len(tokenizer)).eval(), [encoded(row, tokenizer) for row in ROWS[:3]]
    config = replace(CONFIG, n_thoughts=12, thought_tokens=4, top_p=0.02)
    step = PolicyStep(model, reference, tokenizer, WORDS, config)
    rows = step.rows(problems, step.think(problems, 0))
    assert len(problems) <= len(rows.input_ids) < rows.of.numel()
    each = Rows(*(part[rows.of.flatten()] for part in (rows.input_ids, rows.thought, rows.answer)), rows.of)
    each = replace(each, of=torch.arange(rows.of.numel()).view_as(rows.of))
    advantages = torch.randn(rows.of.shape, generator=torch.Generator().manual_seed(0))
    found, lost = [], torch.tensor([True, False, True])
    for some in (rows, each):
        model.zero_grad()
        found.append((step.gradient(some, advantages, lost), gradients(model).clone(), step.answers(some)[0][some.of]))
    names = ("kl_divergence", "grad_norm")  # the signal of a row that stands for several is another sum of squares
    assert [found[0][0][n] for n in names] == pytest.approx([found[1][0][n] for n in names], rel=1e-4)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-6) and torch.allclose(found[0][2], found[1][2], atol=1e-5)


@pytest.mark.parametrize("lost", [[False, False, False], [True, False, False], [True, True, True]])
def test_only_where_nothing_is_right_do_thoughts_gain_from_differing(thinking, lost):
    """Without advantages and KL the gradient is that of the lost problems' entropy, counted out row by row, times the
    share of the problems that are not lost."""
    model, tokenizer = thinking()
    problems = [encoded(row, tokenizer) for row in ROWS[:3]]
    config = replace(CONFIG, kl_coefficient=0.0, entropy_coefficient=0.7, gradient_clip=1e9)
    step = PolicyStep(model, copy.deepcopy(model), tokenizer, WORDS, config)
    rows = step.rows(problems, step.think(problems, 0))
    model.zero_grad()
    step.gradient(rows, torch.zeros(rows.of.shape), lost=torch.tensor(lost))
    found = gradients(model).clone()
    entropies = [0 * sum(parameter.sum() for parameter in model.parameters())]
    for row in rows.of[torch.tensor(lost)].flatten().tolist():
        logits = model(input_ids=rows.input_ids[row : row + 1]).logits[0, :-1][rows.thought[row, 1:]]
        entropies.append(torch.distributions.Categorical(logits=logits).entropy().sum())
    model.zero_grad()
    (-0.7 * (1 - sum(lost) / 3) * sum(entropies) / rows.of.numel()).backward()
    assert torch.allclose(found, gradients(model), atol=1e-6)
    assert (float(found.norm()) > 1e-3) == (0 < sum(lost) < 3)


def test_the_rates_follow_the_share_of_problems_that_teach(thinking, tmp_path):
    model, tokenizer = thinking()
    config = replace(CONFIG, episodes=60, n_thoughts=2, thought_tokens=3, top_p=0.04)
    records = list(steps_of(model, tokenizer, tmp_path, config))
    shares = {record["zero_advantage"] for record in records}
    assert len(shares) > 2, "steps of different worth"
    assert [r["learning_rate"] for r in records] == pytest.approx([0.01 * (1 - r["zero_advantage"]) for r in records])


def test_kl_is_measured_against_the_frozen_model_and_holds_the_policy(thinking, tmp_path):
    far = []
    for coefficient in (0.0, 30.0):
        model, tokenizer = thinking()
        config = replace(CONFIG, episodes=80, muon_lr=0.02, kl_coefficient=coefficient)
        records = list(steps_of(model, tokenizer, tmp_path / str(coefficient), config))
        assert abs(records[0]["kl_divergence"]) < 1e-6
        far.append(records[-1]["kl_divergence"])
    assert far[0] > 1000 * 1e-6, "the free policy has left where it stood"
    assert far[1] < 0.5 * far[0]


def gpt2(n):
    """With the dropout of 0.1 that it comes with."""
    return GPT2LMHeadModel(GPT2Config(vocab_size=n, n_positions=96, n_embd=16, n_layer=1, n_head=2, bos_token_id=0))


@pytest.mark.parametrize("kind", [llama, gpt2, cognate])
def test_thoughts_are_read_by_the_function_they_were_drawn_from(thinking, tmp_path, kind):
    model, tokenizer = thinking(kind)
    first = next(iter(steps_of(model, tokenizer, tmp_path)))
    assert abs(first["kl_divergence"]) < 1e-6, "before the first step the policy is the frozen model"


def test_the_answer_becomes_likelier_by_its_thoughts(thinking, tmp_path):
    """Only the sampled tokens are moved, and the answers' likelihood follows."""
    model, tokenizer = thinking(seed=1)
    config = replace(CONFIG, episodes=400, batch_size=8, kl_coefficient=0.0, top_p=1.0, n_thoughts=6)
    records = list(steps_of(model, tokenizer, tmp_path, config, rows=ROWS[:8]))
    first, last = (sum(r["likelihood"] for r in some) / 10 for some in (records[:10], records[-10:]))
    assert last > first + 0.3


def test_a_record_holds_what_was_measured(thinking, tmp_path):
    model, tokenizer = thinking()
    records = list(steps_of(model, tokenizer, tmp_path, check=lambda m, episode: {"passed": True, "seen": episode}))
    assert [r["episode"] for r in records] == [4, 8, 12, 16, 20, 24] and not model.training
    assert {"reward", "avg_reward_100", "kl_divergence", "thought_length", "thought_diversity"} < set(records[0])
    assert [r.get("seen") for r in records] == [None] * 5 + [24] and records[-1]["restored"] is False
    assert all(3 <= r["thought_length"] <= 6 and 0 <= r["thought_diversity"] <= 1 for r in records)


def test_a_check_that_fails_brings_back_the_last_good_weights(thinking, tmp_path):
    model, tokenizer = thinking()
    verdicts, seen = iter([True, False, False]), []

    def check(measured, episode):
        seen.append(copy.deepcopy(measured.state_dict()))
        return {"passed": next(verdicts)}

    records = list(steps_of(model, tokenizer, tmp_path, replace(CONFIG, check_every=8), check=check))
    assert [r["restored"] for r in records if "restored" in r] == [False, True, True]
    good, now = seen[0], model.state_dict()
    assert all(torch.equal(now[name], value) for name, value in good.items())
    assert any(not torch.equal(seen[1][name], value) for name, value in good.items()), "training had gone on"


@pytest.mark.parametrize("kind", [llama, cognate])
def test_broken_off_anywhere_it_ends_in_the_same_weights(thinking, tmp_path, kind):
    def run(folder, broken_after=None):
        model, tokenizer = thinking(kind)
        verdicts = {8: True, 16: False, 24: True}
        check = lambda m, episode: {"passed": verdicts[episode]}  # noqa: E731
        config = replace(CONFIG, check_every=8)
        checkpointer = Checkpointer(folder, every_steps=1)
        steps = steps_of(model, tokenizer, folder, config, check=check, checkpointer=checkpointer)
        taken = list(itertools.islice(steps, broken_after))
        steps.close()
        return model.state_dict(), taken

    whole, records = run(tmp_path / "whole")
    for broken_after in (1, 3, 5):
        run(tmp_path / str(broken_after), broken_after)
        resumed, rest = run(tmp_path / str(broken_after))
        assert all(torch.equal(whole[name], value) for name, value in resumed.items()), broken_after
        assert [r["avg_reward_100"] for r in rest] == [r["avg_reward_100"] for r in records[-len(rest) :]]


def test_rewards_that_are_all_equal_stop_it(thinking, tmp_path):
    model, tokenizer = thinking()
    with pytest.raises(SilentFailure, match="no thought was worth more than another"):
        list(steps_of(model, tokenizer, tmp_path, replace(CONFIG, reward="binary", alarm_steps=3)))


def test_thoughts_that_are_all_the_same_stop_it(thinking, tmp_path):
    model, tokenizer = thinking()
    with pytest.raises(SilentFailure, match="raise the temperature"):
        list(steps_of(model, tokenizer, tmp_path, replace(CONFIG, top_p=1e-6, alarm_steps=3)))


def test_a_gradient_that_reaches_nothing_stops_it():
    watch, silent = (
        Watch(replace(CONFIG, alarm_steps=2)),
        {"zero_advantage": 0.5, "thought_diversity": 1.0, "reward": 0.0},
    )
    watch.look({"step": 0, "grad_norm": 0.5, "thought_signal": 0.0, **silent})
    watch.look({"step": 1, "grad_norm": 0.1, "thought_signal": 0.2, **silent})
    watch.look({"step": 2, "grad_norm": 0.5, "thought_signal": 0.0, **silent})
    with pytest.raises(SilentFailure, match=r"for 2 steps, the last of them step 3, .* no gradient reached the model"):
        watch.look({"step": 3, "grad_norm": 0.5, "thought_signal": 0.0, **silent})


def test_a_reward_that_is_no_number_stops_it(thinking, tmp_path):
    model, tokenizer = thinking()
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = float("nan")
    with pytest.raises(ValueError, match="step 0, problem 1 of 4: a reward is not a number"):
        list(steps_of(model, tokenizer, tmp_path))


def test_wrong_input_is_refused_before_work(thinking, tmp_path):
    model, tokenizer = thinking()
    with pytest.raises(ValueError, match="got none"):
        list(steps_of(model, tokenizer, tmp_path, rows=[]))
    empty = ReasoningRow("Question: ?\nAnswer:", "", " ", "chain_of_thought", 1, "", "", False)
    with pytest.raises(ValueError, match="row 1 has no answer"):
        list(steps_of(model, tokenizer, tmp_path, rows=[ROWS[0], empty]))
    with pytest.raises(ValueError, match="every weight of the model is frozen"):
        list(steps_of(copy.deepcopy(model).requires_grad_(False), tokenizer, tmp_path))
    with pytest.raises(ValueError, match="the model's context has 96"):
        list(steps_of(model, tokenizer, tmp_path, replace(CONFIG, thought_tokens=90)))
    with pytest.raises(ValueError, match="reward = 'praise'"):
        ReinforceConfig(seed=0, reward="praise")
    with pytest.raises(ValueError, match="n_thoughts = 1: must be at least 2"):
        ReinforceConfig(seed=0, n_thoughts=1)
    assert not (tmp_path / "checkpoints").exists()


def test_a_model_without_the_vocabulary_is_told_what_it_lacks(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"no \[thinking\]: bake the vocabulary forge-12 in first"):
        list(steps_of(llama(len(tokenizer)), tokenizer, tmp_path))


def test_what_earns_nothing_moves_nothing(thinking, tmp_path, monkeypatch):
    """At the KL's minimum the gradient is rounding; an optimizer that normalises would make full steps of it."""
    model, tokenizer = thinking()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr("forgelib.phases.policy_step.leave_one_out", torch.zeros_like)
    list(steps_of(model, tokenizer, tmp_path))
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_thoughts_that_get_no_gradient_stop_it_though_the_kl_gives_one(thinking, tmp_path, monkeypatch):
    model, tokenizer = thinking()
    monkeypatch.setattr(
        "forgelib.phases.policy_step.policy_terms", lambda log_probs, worth: -worth * log_probs.detach()
    )
    other = llama(len(tokenizer))
    steps = reinforce(
        model, other, tokenizer, WORDS, ROWS, replace(CONFIG, alarm_steps=3), checkpointer=Checkpointer(tmp_path / "c")
    )
    with pytest.raises(SilentFailure, match="no gradient reached the model"):
        list(steps)


def test_a_reference_that_is_the_model_or_lacks_the_vocabulary_is_refused(thinking, tmp_path):
    model, tokenizer = thinking()
    for reference, told in ((model, "shares weights"), (llama(len(tokenizer) - 12), "give the baked model")):
        with pytest.raises(ValueError, match=told):
            next(reinforce(model, reference, tokenizer, WORDS, ROWS, CONFIG, checkpointer=Checkpointer(tmp_path / "c")))


@pytest.mark.parametrize("wrong", [{"kl_coefficient": -0.1}, {"reward_limit": 0.0}, {"gradient_clip": float("nan")}])
def test_coefficients_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="must be at least 0"):
        replace(CONFIG, **wrong)
