"""`forge bake-quietstar`: any local model in, a model that thinks out; wrong input is refused before work."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from forgelib.cli import app
from forgelib.data import DataError, vocabulary, write_rows
from forgelib.data.reasoning import without_thought
from forgelib.data.tokenizer import train_bpe
from forgelib.data.traces import procedural_rows
from forgelib.evaluate.text_thinker import TextThinker
from forgelib.workbook import any_model, quietstar
from forgelib.workbook.params import ParameterError
from forgelib.workbook.quietstar import Asked, bake_quietstar, settings

WORDS = vocabulary("forge-12")
CONFIG = """
rows: 40
epochs: 2
batch_size: 8
watch_rows: 10
gate_rows: 20
max_new_tokens: 6
muon_lr: 0.01
adamw_lr: 0.003
"""
AB = {"ab_samples": 4, "ab_thoughts": 2}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
MODELS = {
    "llama": lambda n: LlamaForCausalLM(LlamaConfig(vocab_size=n, num_key_value_heads=2, **SMALL)),
    "gpt2": lambda n: GPT2LMHeadModel(GPT2Config(vocab_size=n, n_embd=32, n_layer=2, n_head=2, n_positions=256)),
}


@pytest.fixture
def given(tmp_path):
    """A model folder and a config file."""

    def make(kind="llama", config=CONFIG):
        tokenizer, _ = train_bpe([row.text for row in procedural_rows(50, WORDS, seed=0)], 300)
        torch.manual_seed(0)
        MODELS[kind](len(tokenizer)).save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
        (tmp_path / "config.yaml").write_text(config)
        return Asked(tmp_path / kind, tmp_path / "out", samples=5, config=tmp_path / "config.yaml", **AB)

    return make


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_goes_in_and_a_model_that_was_baked_comes_out(given, kind, monkeypatch):
    monkeypatch.delenv("FORGE_DATASETS", raising=False)
    asked, told = given(kind), []
    folder = bake_quietstar(asked, told.append)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert all(tokenizer.convert_tokens_to_ids(token) is not None for token in WORDS.tokens)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    report = json.loads((asked.out / "report.json").read_text())
    lines = {line["of"]: line for line in report["right answers"]}
    assert set(WORDS.tag_of) | {"all", "gsm8k"} == set(lines) and lines["gsm8k"]["n"] == 5 and lines["all"]["n"] == 20
    records = [json.loads(line) for line in (asked.out / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 10 and records[-1]["baking/loss"] < records[0]["baking/loss"]
    assert "12 thinking tokens added; 40 rows to bake, 0 skipped" in told[0]
    assert "5 unseen questions of gsm8k, procedural" in told[1], "generated questions are not passed off as real ones"
    section = report["A/B test"]
    assert section["on"] == "gsm8k" and section["samples"] == 4 and section["left out"] == 0
    for against in ("against itself at once", "against the model before baking"):
        assert section[against]["n_problems"] == 12 and len(section[against]["rounds"]) == 3
        assert section[against]["winner"] == "no effect shown" and f"A/B {against}" in " ".join(told)
    assert not (asked.out / "checkpoints").exists()


def test_what_is_there_is_neither_overwritten_nor_mixed(given):
    asked = given()
    bake_quietstar(asked, lambda line: None)
    with pytest.raises(ParameterError, match="give --resume to go on there"):
        bake_quietstar(asked, lambda line: None)
    again = replace(asked, resume=True)
    told = []
    assert bake_quietstar(again, told.append) == asked.out / "model" and "is finished" in told[0]


def test_broken_off_and_resumed_it_ends_in_the_same_weights(given, tmp_path):
    asked = given(config=CONFIG + "checkpoint_every_seconds: 0.001\n")
    whole = bake_quietstar(asked, lambda line: None)

    class Off(Exception):
        pass

    def break_off(line):
        if "step 5" in line:
            raise Off

    other = replace(asked, out=tmp_path / "other")
    with pytest.raises(Off):
        bake_quietstar(other, break_off)
    resumed = replace(other, resume=True)
    parts = [AutoModelForCausalLM.from_pretrained(f) for f in (whole, bake_quietstar(resumed, lambda line: None))]
    for p, q in zip(*(part.parameters() for part in parts), strict=True):
        assert torch.equal(p, q)
    asked.config.write_text(CONFIG + "seed: 1\n")
    (tmp_path / "other" / "model").rename(tmp_path / "gone")
    with pytest.raises(ParameterError, match="was begun with another seed, checkpoint_every_seconds"):
        bake_quietstar(resumed, lambda line: None)


def test_skipped_rows_are_named(given, tmp_path):
    write_rows(tmp_path / "rows.jsonl", procedural_rows(200, WORDS, seed=0))
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("{}\n")
    told = []
    asked = given(config=CONFIG + f"reasoning_file: {tmp_path / 'rows.jsonl'}\n")
    bake_quietstar(replace(asked, dataset="", ab_samples=0), told.append)
    assert "1 skipped" in told[0] and "rows.jsonl, line 201: field 'prompt' is missing" in told[1]


@pytest.mark.parametrize(
    "config, told",
    [
        ("epochs: 0\n", "epochs = 0: must be a whole number"),
        ("learning: 1\n", "learning = 1"),
        ("muon_lr: 1e-3\n", "muon_lr = '1e-3'"),
        ("- 3\n", "must be a flat list"),
        ("profile: laptop\n", "profile means nothing here"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_settings_are_checked(tmp_path, config, told):
    (tmp_path / "c.yaml").write_text(config)
    with pytest.raises(ParameterError, match=told):
        settings(tmp_path / "c.yaml")


def test_what_is_no_model_is_refused_by_the_command_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for model in (tmp_path / "empty", tmp_path / "nowhere"):
        done = CliRunner().invoke(app, ["bake-quietstar", "--model", str(model), "--out", str(tmp_path / "out")])
        assert done.exit_code != 0 and isinstance(done.exception, ParameterError) and str(model) in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_a_broken_file_and_an_unknown_dataset_are_refused(given, tmp_path):
    asked = given()
    (tmp_path / "bad.gguf").write_bytes(b"no such thing")
    with pytest.raises(ParameterError, match=r"bad\.gguf: cannot be read"):
        bake_quietstar(Asked(tmp_path / "bad.gguf", asked.out, config=asked.config, dataset=""), lambda line: None)
    with pytest.raises(DataError, match="there is no dataset 'gsm9k'"):
        bake_quietstar(Asked(asked.model, asked.out, dataset="gsm9k", config=asked.config), lambda line: None)
    assert not asked.out.exists()


def test_an_ab_test_that_is_broken_off_goes_on_and_asks_nothing_twice(given, monkeypatch):
    asked, thought, at_once = replace(given(), dataset=""), [], set()
    think, answer = TextThinker.think, TextThinker.answer

    class Off(Exception):
        pass

    def listening(self, prompts, **options):
        thought.append(tuple(prompts))
        if len(thought) == 3:
            raise Off
        return think(self, prompts, **options)

    def answering(self, prompts, thoughts):
        if thoughts[0] is None:
            at_once.add((self.at_once, WORDS.begin in self.tokenizer.get_vocab()))
        return answer(self, prompts, thoughts)

    monkeypatch.setattr(TextThinker, "think", listening)
    monkeypatch.setattr(TextThinker, "answer", answering)
    with pytest.raises(Off):
        bake_quietstar(asked, lambda line: None)
    weights = (asked.out / "model" / "model.safetensors").read_bytes()
    assert "A/B test" not in json.loads((asked.out / "report.json").read_text()), "the bake is done, the test is not"
    with pytest.raises(ParameterError, match="begun with another ab_rounds"):
        bake_quietstar(replace(asked, ab_rounds=4, resume=True), lambda line: None)
    told = []
    bake_quietstar(replace(asked, resume=True), told.append)
    assert len(thought) == 4 and thought[2] == thought[3] and len(set(thought)) == 3, "two rounds were remembered"
    assert at_once == {(True, True), (False, False)}, "only the baked model is asked for its answer at once"
    section = json.loads((asked.out / "report.json").read_text())["A/B test"]
    assert section["on"] == "gate rows" and section["against itself at once"]["n_problems"] == 12
    assert (asked.out / "model" / "model.safetensors").read_bytes() == weights and "thinking tokens" not in told[0]
    whole = replace(asked, out=asked.out.with_name("whole"))
    bake_quietstar(whole, lambda line: None)
    assert json.loads((whole.out / "report.json").read_text())["A/B test"] == section
    bake_quietstar(replace(asked, resume=True), told.append)
    assert "is finished" in told[-1]


def test_problems_that_do_not_fit_the_context_are_left_out_and_counted(given, monkeypatch):
    asked, told, fits = replace(given("gpt2"), dataset=""), [], quietstar._fits
    model, tokenizer = any_model.load_any(asked.model, "cpu")
    p, (row,) = settings(asked.config), procedural_rows(1, WORDS, seed=0)
    most = 256 - len(tokenizer(without_thought(row.prompt))["input_ids"]) - quietstar.ANSWER_TOKENS
    for longest, verdict in ((most, True), (most + 1, False)):
        assert fits(row, p.model_copy(update={"max_new_tokens": longest}), model, tokenizer) is verdict
    monkeypatch.setattr(quietstar, "_fits", lambda row, *given: row.strategy == "mece" and fits(row, *given))
    bake_quietstar(asked, told.append)
    section = json.loads((asked.out / "report.json").read_text())["A/B test"]
    assert section["left out"] == 18 and section["samples"] == section["against itself at once"]["n_problems"] == 2
    monkeypatch.setattr(quietstar, "_fits", lambda *given: False)
    bake_quietstar(replace(asked, out=asked.out.with_name("none")), told.append)
    section = json.loads((asked.out.with_name("none") / "report.json").read_text())["A/B test"]
    assert section["left out"] == 20 and "lower max_new_tokens" in section["not run"]
    assert "A/B test not run: 0 of 20 problems fit" in told[-1]


def test_a_device_that_is_not_here_and_a_packed_folder_are_refused_before_any_work(given):
    asked = given()
    with pytest.raises(ParameterError, match="--device abacus: cannot be used here"):
        bake_quietstar(replace(asked, device="abacus"), lambda line: None)
    (asked.model / "packed.json").write_text("{}")
    with pytest.raises(ParameterError, match="is packed already"):
        bake_quietstar(asked, lambda line: None)
    assert not asked.out.exists()


@pytest.mark.parametrize("given_ab", [{"ab_rounds": 0}, {"ab_samples": 1}, {"ab_thoughts": 1}, {"ab_improvement": 1.0}])
def test_an_ab_test_that_tests_nothing_is_refused_before_any_work(given, given_ab):
    asked = replace(given(), **given_ab)
    with pytest.raises(ParameterError, match="--ab-samples, --ab-rounds, --ab-thoughts, --ab-improvement: ") as caught:
        bake_quietstar(asked, lambda line: None)
    assert "ABConfig" not in str(caught.value), "people wrote options, no such thing"
    with pytest.raises(ValueError, match="row 0 has no answer"):
        bake_quietstar(replace(given(), dataset="wikitext"), lambda line: None)
    assert not asked.out.exists()
