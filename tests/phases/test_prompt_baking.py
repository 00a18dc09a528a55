"""Prompt baking: the KL is the KL, the teacher stays as it was, the prompt's effect is in the weights afterwards."""

import copy
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from toy_language import ANSWER, S, T, V, asked, speaker
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from forgelib.core.health import NonFiniteError
from forgelib.core.loop import Checkpointer, CheckpointError, Control, RunStopped
from forgelib.evaluate.continuations import (
    PromptedQuestions,
    Read,
    kl_per_continuation,
    log_likelihoods,
    read_continuations,
    sample_continuations,
    shuffled,
)
from forgelib.evaluate.prompt_effect import identity_r_squared, r_squared
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.optim.lora_layers import adapted_layers
from forgelib.phases import prompt_baking
from forgelib.phases.prompt_baking import (
    PromptBaker,
    PromptBakingConfig,
    bake_in_turn,
    effect_between,
    load_baked,
)

WORDS = 40
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
HF = {"vocab_size": WORDS, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": None, "initializer_range": 0.3}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES, **HF, max_position_embeddings=64))


def qwen2():
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, **HF, num_key_value_heads=1, max_position_embeddings=64))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **HF))


def cognate():
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24, "window": 5, "memory_chunk": 4}
    model = CognateForCausalLM(CognateConfig(WORDS, **sizes, initializer_range=0.2, eos_token_id=0, pad_token_id=0))
    with torch.no_grad():
        model.model.halting.probe.weight.normal_(std=2.0)
    return model


FAMILIES = {"llama": llama, "qwen2": qwen2, "gpt2": gpt2, "cognate": cognate}


@pytest.fixture(params=FAMILIES)
def small(request):
    torch.manual_seed(1)
    return FAMILIES[request.param]().eval()


@pytest.fixture(scope="module")
def learnt():
    torch.set_num_threads(1)
    return speaker()


def words(n: int, seed: int) -> tuple[int, ...]:
    return tuple(torch.randint(1, WORDS, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


#: Questions of several lengths behind a prompt of five tokens.
MIXED = PromptedQuestions.from_ids(words(5, 0), [words(2 + i % 4, i + 1) for i in range(6)])
QUICK = PromptBakingConfig(steps=4, seed=7, batch_size=4, max_new_tokens=5, rank=2, learning_rate=0.02)
TOY = PromptBakingConfig(steps=45, seed=0, batch_size=32, max_new_tokens=ANSWER, learning_rate=1e-2)


def bake(baker: PromptBaker, folder, **options) -> list[dict]:
    return list(baker.bake(Checkpointer(folder, every_steps=2), **options))


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trained(baker: PromptBaker) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in baker.trainable().items()}


# ---- the measure


def by_hand(teacher: Read, student: Read) -> torch.Tensor:
    """sum_t sum_v p (log p - log q) in float64, token by token."""
    totals = torch.zeros(len(teacher.real), dtype=torch.float64)
    for row, length in enumerate(teacher.real.sum(1).tolist()):
        for t in range(length):
            p = torch.exp(teacher.logits[row, t].double())
            q = torch.exp(student.logits[row, t].double())
            p, q = p / p.sum(), q / q.sum()
            totals[row] += sum(p[v] * (math.log(p[v]) - math.log(q[v])) for v in range(len(p)))
    return totals


def drawn_reads(dtype=torch.float32) -> tuple[Read, Read]:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn((2, 3, 4, 7), generator=generator, dtype=torch.float64)
    real = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    targets = torch.randint(0, 7, (3, 4), generator=generator)
    return tuple(Read(one.to(dtype), targets, real) for one in logits)


@pytest.mark.parametrize("rows_at_once", [None, 1, 3])
def test_the_kl_is_the_one_written_out_by_hand(rows_at_once):
    teacher, student = drawn_reads()
    found = kl_per_continuation(teacher, student, rows_at_once)
    torch.testing.assert_close(found.double(), by_hand(teacher, student), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows_at_once", [None, 2])
def test_its_gradient_is_q_minus_p_on_the_real_tokens_and_zero_on_padding(rows_at_once):
    teacher, student = drawn_reads(torch.float64)
    logits = student.logits.requires_grad_()
    kl_per_continuation(teacher, student._replace(logits=logits), rows_at_once).sum().backward()
    expected = (logits.softmax(-1) - teacher.logits.softmax(-1)) * teacher.real[..., None]
    torch.testing.assert_close(logits.grad, expected.detach())


@pytest.mark.parametrize("rows_at_once", [None, 3])
def test_log_likelihoods_are_sums_over_the_real_tokens(rows_at_once):
    read, _ = drawn_reads(torch.float64)
    chosen = read.logits.log_softmax(-1).gather(-1, read.targets[..., None])[..., 0]
    torch.testing.assert_close(log_likelihoods(read, rows_at_once), (chosen * read.real).sum(1))


def test_r_squared_forgives_an_offset_and_the_identity_does_not():
    x = torch.arange(12.0).numpy()
    assert r_squared(x, 3 * x - 5) == pytest.approx(1.0) and r_squared(x, x * 0) == 0.0
    assert identity_r_squared(x, x) == 1.0 and identity_r_squared(x, x + 5) < 0


def test_a_batch_reads_as_its_rows_do_one_by_one(small):
    texts = [words(1 + i % 5, 50 + i) for i in range(len(MIXED))]
    with torch.no_grad():
        together = read_continuations(small, MIXED.bare, texts)
        for i, (context, text) in enumerate(zip(MIXED.bare, texts, strict=True)):
            whole = small(input_ids=torch.tensor([[*context, *text]])).logits[0, len(context) - 1 : -1]
            torch.testing.assert_close(together.logits[i, : len(text)], whole, rtol=1e-4, atol=1e-4)
            assert together.targets[i, : len(text)].tolist() == list(text)
            assert together.real[i].tolist() == [j < len(text) for j in range(together.real.shape[1])]


def test_continuations_do_not_depend_on_their_batch_nor_on_any_global_state(small):
    def sample(size: int) -> list[list[int]]:
        return sample_continuations(small, MIXED.prompted, max_new_tokens=6, seed=4, batch_size=size)

    before = torch.get_rng_state()
    together = sample(6)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert sample(1) == together == sample(4)
    assert sample_continuations(small, MIXED.prompted, max_new_tokens=6, seed=5) != together


def test_continuations_follow_the_softmax_whatever_the_model_ships_for_generation():
    torch.manual_seed(1)
    model = llama().eval()
    shipped = GenerationConfig(do_sample=True, top_k=2, temperature=0.2, repetition_penalty=9.0, eos_token_id=0)
    model.generation_config, context, n = shipped, words(4, 9), 4000
    drawn = sample_continuations(model, [context] * n, max_new_tokens=1, seed=0, batch_size=n)
    counts = torch.bincount(torch.tensor(drawn)[:, 0], minlength=WORDS)
    with torch.no_grad():
        p = model(torch.tensor([context])).logits[0, -1].softmax(-1)
    assert (counts / n - p).abs().max() < 4 * float((p * (1 - p) / n).sqrt().max())
    assert model.generation_config is shipped


def test_a_continuation_ends_with_its_end_token():
    torch.manual_seed(1)
    model = llama().eval()
    texts = sample_continuations(model, [words(3, i) for i in range(60)], max_new_tokens=12, seed=0)
    ended = [text for text in texts if 0 in text]
    assert 3 < len(ended) < 60 and all(text.index(0) == len(text) - 1 for text in ended)
    assert all(len(text) == 12 for text in texts if 0 not in text)


def test_the_control_has_the_same_tokens_in_another_order():
    prompt = words(6, 0)
    assert sorted(shuffled(prompt, 0)) == sorted(prompt) and shuffled(prompt, 0) != list(prompt)
    assert shuffled((S, T), 1) == [T, S]
    with pytest.raises(ValueError, match="no other order"):
        shuffled((V, V), 0)


def test_texts_go_through_the_chat_template_or_stand_behind_each_other():
    vocabulary = {word: i for i, word in enumerate(["<b>", "be", "brief", "who", "what", "system", "user", ":"])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token=":"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    plain = PromptedQuestions.from_text(tokenizer, "be brief", ["who", "what"])
    assert plain == PromptedQuestions(((1, 2, 3), (1, 2, 4)), ((3,), (4,)))
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}"
    chat = PromptedQuestions.from_text(tokenizer, "be brief", ["who"])
    assert chat == PromptedQuestions(((5, 7, 1, 2, 6, 7, 3),), ((6, 7, 3),))


# ---- one adapter on any causal LM


def test_every_family_is_baked_and_every_matrix_gets_a_gradient(small, tmp_path):
    before, names = weights_of(small), [name for name, _ in small.named_parameters()]
    learned = {name: p.requires_grad for name, p in small.named_parameters()}
    texts = [words(4, 60 + i) for i in range(len(MIXED))]
    with torch.no_grad():
        expected = read_continuations(small, MIXED.prompted, texts).logits
    baker = PromptBaker(small, MIXED, QUICK, heldout=MIXED)
    first = trained(baker)
    records = bake(baker, tmp_path)
    assert [record["step"] for record in records] == [0, 1, 2, 3] and records[-1]["heldout_kl"] > 0
    after = trained(baker)
    assert [name for name in after if torch.equal(first[name], after[name])] == [], "a matrix without a gradient"
    assert not any("lm_head" in name or "embed" in name or "probe" in name for name in after)
    assert torch.equal(baker.frozen(MIXED.prompted, texts).logits, expected), "the teacher moved"
    restored = baker.unload()
    assert restored is small and same(before, weights_of(restored)), "the weights under the adapter moved"
    assert {name: p.requires_grad for name, p in restored.named_parameters()} == learned
    assert [name for name, _ in restored.named_parameters()] == names


def test_all_linear_layers_are_adapted_except_the_head():
    names = adapted_layers(llama(), torch.tensor([words(6, 0)]))
    parts = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(names) == 2 * len(parts) and {name.rpartition(".")[2] for name in names} == parts
    assert len(adapted_layers(gpt2(), torch.tensor([words(6, 0)]))) == 2 * 4


def test_the_models_own_dropout_stays_off(tmp_path):
    torch.manual_seed(1)
    noisy = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, resid_pdrop=0.5, **HF))
    calm = copy.deepcopy(noisy)
    for module in calm.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    one, other = PromptBaker(noisy, MIXED, QUICK), PromptBaker(calm, MIXED, QUICK)
    bake(one, tmp_path / "noisy")
    bake(other, tmp_path / "calm")
    assert same(trained(one), trained(other))


def test_the_adapters_dropout_is_on_and_drawn_from_the_step(tmp_path):
    ends = []
    for dropout, global_seed in ((0.5, 1), (0.5, 2), (0.0, 1)):
        torch.manual_seed(1)
        baker = PromptBaker(llama(), MIXED, replace(QUICK, dropout=dropout))
        torch.manual_seed(global_seed)
        bake(baker, tmp_path / f"{dropout}-{global_seed}")
        ends.append(trained(baker))
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])


def test_every_question_comes_once_before_one_comes_again():
    torch.manual_seed(1)
    baker = PromptBaker(llama(), MIXED, QUICK)
    rows = [row for step in range(6) for row in baker.rows_at(step)]
    passes = [rows[i : i + 6] for i in range(0, 24, 6)]
    assert all(sorted(one) == list(range(6)) for one in passes) and len({tuple(one) for one in passes}) > 1


# ---- the effect


@pytest.mark.slow
def test_baking_keeps_the_effect_and_a_shuffled_prompt_does_not(learnt, tmp_path):
    heldout = asked((S, T), 48, seed=3)
    effects = {}
    for name, prompt in (("true", (S, T)), ("control", tuple(shuffled((S, T), 0)))):
        baker = PromptBaker(copy.deepcopy(learnt), asked(prompt, 64, seed=1), TOY)
        assert len(bake(baker, tmp_path / name)) == TOY.steps
        effects[name] = baker.effect(heldout)
    true, control = effects["true"], effects["control"]
    assert true.share_removed_interval[0] >= 0.8 and true.r2 >= 0.96 and true.r2_identity >= 0.96
    assert true.kl_after_interval[1] < true.kl_before_interval[0] and true.kl_before == control.kl_before
    assert control.share_removed_interval[1] < 0.8 and control.r2 < 0.96
    assert true.r2_before < 0.96 and true.n_tokens == 48 * 4 * ANSWER


@pytest.mark.slow
def test_half_baking_stops_in_between(learnt, tmp_path):
    config = replace(TOY, learning_rate=2e-3, stop_at_share=0.5, evaluate_every=1)
    baker = PromptBaker(copy.deepcopy(learnt), asked((S, T), 64, seed=1), config, asked((S, T), 32, seed=2))
    records = bake(baker, tmp_path)
    assert 2 <= len(records) < TOY.steps
    assert records[-1]["share_removed"] >= 0.5 > records[-2]["share_removed"]
    effect = baker.effect(asked((S, T), 48, seed=3))
    assert effect.kl_after_interval[1] < effect.kl_before_interval[0] and 0.4 < effect.share_removed < 0.7
    stopped = trained(baker)
    again = PromptBaker(baker.unload(), asked((S, T), 64, seed=1), config, asked((S, T), 32, seed=2))
    assert bake(again, tmp_path) == [] and same(trained(again), stopped), "a finished half-bake is taken up as it is"


@pytest.mark.slow
def test_pursuit_keeps_the_effect_over_three_rounds(learnt, tmp_path):
    config = replace(TOY, steps=90, refresh_teacher_every=30)
    baker = PromptBaker(copy.deepcopy(learnt), asked((V,), 64, seed=1), config)
    bake(baker, tmp_path)
    effect = baker.effect(asked((V,), 48, seed=3))
    assert effect.share_removed_interval[0] >= 0.8 and effect.r2 >= 0.96


@pytest.mark.parametrize("every", [None, 1, 3])
def test_the_teacher_of_pursuit_is_the_student_as_the_round_began(every, tmp_path, monkeypatch):
    torch.manual_seed(1)
    baker = PromptBaker(llama(), MIXED, replace(QUICK, steps=7, refresh_teacher_every=every))
    probe, taught = [words(4, 60 + i) for i in range(len(MIXED))], []

    def expected() -> torch.Tensor:
        with torch.no_grad():
            return read_continuations(baker.model.get_base_model(), MIXED.prompted, probe).logits

    def watched(model, contexts, **options):
        taught.append(expected())  # what whoever samples now, the teacher, thinks of the prompted questions
        return sample_continuations(model, contexts, **options)

    monkeypatch.setattr(prompt_baking, "sample_continuations", watched)
    students = [expected()]
    for _ in baker.bake(Checkpointer(tmp_path)):
        students.append(expected())
    for step, teacher in enumerate(taught):
        assert torch.equal(teacher, students[step - step % every if every else 0])
    assert not torch.allclose(students[0], students[6], atol=1e-2)


def test_a_first_round_of_pursuit_is_a_plain_bake(tmp_path):
    ends = []
    for every in (None, 100):
        torch.manual_seed(1)
        baker = PromptBaker(llama(), MIXED, replace(QUICK, refresh_teacher_every=every))
        bake(baker, tmp_path / str(every))
        ends.append(trained(baker))
    assert same(*ends)


@pytest.mark.slow
def test_two_prompts_in_turn_are_both_kept(learnt, tmp_path):
    """Of the KL to the model with both prompts in front, 85% and more is gone; the first alone leaves over a third."""
    config = replace(TOY, steps=60, learning_rate=5e-3)
    both, prompts = asked((S, T, V), 48, seed=3), [asked((S, T), 64, seed=1), asked((V,), 64, seed=1)]
    shares = {}
    for name, chosen in (("first", prompts[:1]), ("both", prompts)):
        model = copy.deepcopy(learnt)
        records = list(bake_in_turn(model, chosen, config, tmp_path))  # the second time the first prompt is found done
        assert [record["prompt"] for record in records] == [len(chosen) - 1] * config.steps
        measured = effect_between(learnt, model, both, max_new_tokens=ANSWER, samples=2, seed=0)
        shares[name] = measured.share_removed
    assert shares["both"] >= 0.85 and shares["first"] < 0.65


# ---- kept, merged, interrupted


def test_saved_and_loaded_is_exact_and_merged_is_the_same_function(small, tmp_path):
    original = copy.deepcopy(small)
    baker = PromptBaker(small, MIXED, QUICK)
    bake(baker, tmp_path / "checkpoints")
    texts = [words(4, 60 + i) for i in range(len(MIXED))]
    with torch.no_grad():
        expected = baker.bare(MIXED.bare, texts).logits
        unbaked = baker.frozen(MIXED.bare, texts).logits
        baker.save(tmp_path / "adapter")
        stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        assert len(stored) == len(baker.trainable())
        loaded = load_baked(original, tmp_path / "adapter")
        assert torch.equal(read_continuations(loaded.get_base_model(), MIXED.bare, texts).logits, expected)
        merged = read_continuations(baker.merge(), MIXED.bare, texts).logits
    assert not torch.allclose(expected, unbaked, atol=1e-2)
    torch.testing.assert_close(merged, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("leave_after", [0, 1, 4])
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.3}, {"refresh_teacher_every": 2}], ids=str)
def test_leaving_and_coming_back_changes_no_bit(tmp_path, leave_after, changes):
    config = replace(QUICK, steps=6, **changes)

    def fresh() -> PromptBaker:
        torch.manual_seed(1)
        return PromptBaker(llama(), MIXED, config, heldout=MIXED)

    whole, broken, again = fresh(), fresh(), fresh()
    expected = bake(whole, tmp_path / "whole")
    steps = broken.bake(Checkpointer(tmp_path / "broken", every_steps=1000))
    for record in steps:
        if record["step"] == leave_after:
            steps.close()
            break
    with torch.no_grad():
        for weight in again.trainable().values():
            weight.fill_(0.123)  # everything must come from the checkpoint
    torch.manual_seed(99)
    records = bake(again, tmp_path / "broken")
    assert [record["kl"] for record in records] == [record["kl"] for record in expected[leave_after + 1 :]]
    assert same(trained(whole), trained(again))


def test_prompts_in_turn_go_on_where_they_were_left(tmp_path):
    prompts = [MIXED, PromptedQuestions.from_ids(words(3, 70), MIXED.bare)]
    ends = []
    for leave_after in (None, 2, 5):
        for patience in (leave_after, None) if leave_after else (None,):
            torch.manual_seed(1)
            model = llama().eval()
            steps = bake_in_turn(model, prompts, QUICK, tmp_path / f"{leave_after}")
            for number, _ in enumerate(steps):
                if number == patience:
                    steps.close()
                    break
        ends.append(weights_of(model))
    assert same(ends[0], ends[1]) and same(ends[0], ends[2])


def test_a_baker_starts_anew_in_a_new_folder_even_after_a_broken_step(tmp_path):
    torch.manual_seed(1)
    baker = PromptBaker(llama(), MIXED, QUICK)
    bake(baker, tmp_path / "first")
    first = trained(baker)
    for weight in baker.trainable().values():
        weight.grad = torch.full_like(weight, float("nan"))
    bake(baker, tmp_path / "second")
    assert same(first, trained(baker))


def killed_baking(folder: Path, pace: float = 0.0) -> None:
    """What the test below starts, kills and starts again."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    config = replace(QUICK, steps=40, dropout=0.2, refresh_teacher_every=7)
    baker = PromptBaker(llama(), MIXED, config)
    for record in baker.bake(Checkpointer(folder / "checkpoints", every_steps=3)):
        with (folder / "journal").open("a") as journal:
            journal.write(json.dumps(record) + "\n")
        time.sleep(pace)
    baker.save(folder / "adapter")


@pytest.mark.slow
def test_sigkill_changes_no_bit(tmp_path):
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    calm.mkdir()
    stormy.mkdir()
    killed_baking(calm)
    here = Path(__file__).parent
    code = f"import sys; sys.path.insert(0, {str(here)!r}); import pathlib, test_prompt_baking as t; "
    command = [sys.executable, "-c", code + f"t.killed_baking(pathlib.Path({str(stormy)!r}), 0.05)"]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if (stormy / "journal").is_file() and len((stormy / "journal").read_text().splitlines()) >= 17:
            break
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (stormy / "adapter").exists()
    killed_baking(stormy)
    file = "adapter/adapter_model.safetensors"
    assert same(load_file(calm / file), load_file(stormy / file))


def test_a_stop_from_outside_keeps_a_checkpoint(tmp_path):
    torch.manual_seed(1)
    control, baker = Control(tmp_path), PromptBaker(llama(), MIXED, QUICK)
    with pytest.raises(RunStopped, match="after step 2 of 4"):
        for record in baker.bake(Checkpointer(tmp_path / "c"), control):
            if record["step"] == 1:
                control.request("stop")
    assert [record["step"] for record in bake(baker, tmp_path / "c")] == [2, 3]


@pytest.mark.parametrize("change", ["model", "prompt", "settings"])
def test_a_checkpoint_of_another_baking_is_refused(tmp_path, change):
    torch.manual_seed(1)
    baker = PromptBaker(llama(), MIXED, QUICK)
    bake(baker, tmp_path)
    model = baker.merge() if change == "model" else baker.unload()
    questions = PromptedQuestions.from_ids(words(3, 70), MIXED.bare) if change == "prompt" else MIXED
    config = replace(QUICK, rank=3) if change == "settings" else QUICK
    with pytest.raises(CheckpointError, match="another model, other questions or other settings"):
        bake(PromptBaker(model, questions, config), tmp_path)


# ---- what goes wrong is said


def test_nan_names_the_step_and_the_layer(tmp_path):
    torch.manual_seed(1)
    baker = PromptBaker(llama(), MIXED, QUICK)

    def poison(module, inputs, output):
        return output * float("nan") if poison.on else output

    poison.on = False
    baker.model.get_submodule("base_model.model.model.layers.1.mlp").register_forward_hook(poison)
    with pytest.raises(NonFiniteError) as caught:
        for record in baker.bake(Checkpointer(tmp_path, every_steps=1)):
            poison.on = record["step"] == 1
    assert caught.value.step == 2 and "layers.1.mlp" in caught.value.where
    assert Checkpointer(tmp_path).latest()["step"] == 2, "the step that broke is not in the checkpoint"


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PromptedQuestions.from_ids((), [(1, 2)]), "the prompt is empty"),
        (lambda: PromptedQuestions.from_text(None, "  ", ["who"]), "the prompt is empty"),
        (lambda: PromptedQuestions.from_ids((1,), []), "there are no questions"),
        (lambda: PromptedQuestions.from_ids((1,), [(2,), ()]), "question 1 has no token"),
        (lambda: replace(QUICK, steps=0), "steps = 0: must be a whole number above 0"),
        (lambda: replace(QUICK, refresh_teacher_every=0), "refresh_teacher_every = 0"),
        (lambda: replace(QUICK, learning_rate=math.nan), "learning_rate = nan"),
        (lambda: replace(QUICK, dropout=1.0), "dropout = 1.0"),
        (lambda: replace(QUICK, stop_at_share=1.0), "stop_at_share = 1.0"),
        (lambda: PromptBaker(llama(), MIXED, replace(QUICK, max_new_tokens=60)), "the model has 64 positions"),
        (lambda: PromptBaker(llama(), MIXED, replace(QUICK, stop_at_share=0.5)), "stop_at_share needs heldout"),
        (lambda: PromptBaker(PromptBaker(llama(), MIXED, QUICK).model, MIXED, QUICK), "adapter on it already"),
        (lambda: [PromptBaker(model, MIXED, QUICK) for model in 2 * [llama()]], "adapter on it already"),
    ],
)
def test_what_cannot_be_baked_is_refused_with_a_reason(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_without_linear_layers_is_refused():
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**(SIZES | {"num_hidden_layers": 0}), **HF, max_position_embeddings=64))
    with pytest.raises(ValueError, match="no linear layer besides its output head"):
        PromptBaker(model, MIXED, QUICK)


def test_a_prompt_without_effect_is_refused(tmp_path):
    torch.manual_seed(1)
    model = llama()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    baker = PromptBaker(model, MIXED, QUICK, heldout=MIXED)
    with pytest.raises(ValueError, match="the prompt changes nothing at all"):
        bake(baker, tmp_path)
    with pytest.raises(ValueError, match="the prompt changes nothing at all"):
        baker.effect(MIXED)


def test_two_models_are_compared_as_two_sides_of_one_adapter(tmp_path):
    torch.manual_seed(1)
    original = llama().eval()
    baker = PromptBaker(copy.deepcopy(original), MIXED, QUICK)
    bake(baker, tmp_path)
    by_adapter = baker.effect(MIXED, samples=2, seed=5)
    by_models = partial(effect_between, original, max_new_tokens=QUICK.max_new_tokens, samples=2, seed=5)
    found = by_models(baker.merge(), MIXED)
    assert found.kl_before == by_adapter.kl_before and found.n_tokens == by_adapter.n_tokens
    assert found.kl_after == pytest.approx(by_adapter.kl_after, rel=1e-4)
