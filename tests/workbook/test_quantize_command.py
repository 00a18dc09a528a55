"""`forge quantize`: any local model in, ternary exports out; what cannot work is refused before work."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from forgelib.cli import app
from forgelib.core.loop import CheckpointError, RunStopped
from forgelib.data import vocabulary
from forgelib.data.tokenizer import train_bpe
from forgelib.data.traces import procedural_rows
from forgelib.phases import quantize as phase
from forgelib.quant import PackedTernaryLinear, load_packed
from forgelib.thoughts import add_vocabulary
from forgelib.workbook import quantize as workbook
from forgelib.workbook.params import ParameterError
from forgelib.workbook.quantize import Asked, run_quantize, settings
from forgelib.workbook.quantize_rows import Found, enough_right, known_words

CONFIG = """
data: procedural
calibration_rows: 4
held_rows: 28
max_tokens: 48
max_new_tokens: 4
muon_lr: 0.01
adamw_lr: 0.003
finetune_above: -1.0
fall_back_above: 1.0
"""
WORDS = vocabulary("forge-12")


@pytest.fixture
def given(tmp_path):
    """A Llama folder and a config file, four steps of fine-tuning; with `thinks` it knows the thinking tokens."""

    def make(config=CONFIG, thinks=False, hidden=256, max_position_embeddings=2048, **changed):
        tokenizer, _ = train_bpe([row.text for row in procedural_rows(40, WORDS, seed=0)], 300)
        torch.manual_seed(0)
        sizes = {"hidden_size": hidden, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 4, "tie_word_embeddings": True, "initializer_range": 0.1}
        sizes |= {"max_position_embeddings": max_position_embeddings}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
        if thinks:
            add_vocabulary(model, tokenizer, WORDS)
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        (tmp_path / "config.yaml").write_text(config)
        asked = Asked(tmp_path / "model", tmp_path / "out", steps=4, config=tmp_path / "config.yaml")
        return replace(asked, **changed)

    return make


def test_a_model_goes_in_and_every_export_comes_out(given, monkeypatch):
    monkeypatch.delenv("FORGE_DATASETS", raising=False)
    asked, told = given(exports=("packed", "bitnet", "gguf", "tq1_0"), dataset="svamp", samples=3), []
    out = run_quantize(asked, told.append)
    report = json.loads((out / "report.json").read_text())
    assert list(report["quality"]) == ["before", "rounded", "fine-tuned", "packed"] and report["ternary layers"] == 7
    assert "svamp" in report["quality"]["before"]["right"] and len(report["quality"]["before"]["probability"]) > 3
    on_disk = {row["part"]: row for row in report["sizes"]}
    stored = sum((out / "packed" / f"{name}.safetensors").stat().st_size for name in ("ternary", "rest"))
    assert on_disk["packed, on disk"]["stored bytes"] == stored, "counted from the files"
    assert on_disk["gguf, on disk"]["stored bytes"] == (out / "model-TQ2_0.gguf").stat().st_size
    assert on_disk["ternary layers"]["times smaller"] > 15
    layers = [json.loads(line) for line in (out / "layers.jsonl").read_text().splitlines()]
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(layers) == 7 and len(steps) == 4 and "bitnet/loss" in steps[0]
    packed = load_packed(out / "packed")
    zeros = [m.sparsity() for m in packed.modules() if isinstance(m, PackedTernaryLinear)]
    assert min(zeros) <= report["sparsity"] <= max(zeros)
    assert AutoTokenizer.from_pretrained(out / "packed").eos_token_id is not None
    again = AutoModelForCausalLM.from_pretrained(out, gguf_file="model-TQ1_0.gguf")
    scale = packed.model.layers[0].mlp.up_proj
    assert torch.equal(again.model.layers[0].mlp.up_proj.weight.sign(), scale.weight.sign())
    text = "\n".join(told)
    assert "7 layers, " in text and "of the parameters, become ternary" in text
    assert "ternary layers" in text and "zeros in ternary layers" in text and "svamp" in text
    assert not (out / "checkpoints").exists()


def test_a_thinking_model_gets_reasoning_rows(given, tmp_path, monkeypatch):
    """And is asked the dataset beside them."""
    monkeypatch.delenv("FORGE_DATASETS", raising=False)
    asked, told = given(thinks=True, hidden=64, dataset="svamp", samples=3), []
    assert known_words(AutoTokenizer.from_pretrained(asked.model)).name == "forge-12"
    with pytest.raises(ParameterError, match="max_tokens is 48: raise it"):
        run_quantize(asked, told.append)
    run_quantize(replace(asked, config=_with(tmp_path, CONFIG, max_tokens=400)), told.append)
    assert "reasoning rows (forge-12)" in told[0] and "3 questions of svamp (procedural)" in told[0]
    before = json.loads((asked.out / "report.json").read_text())["quality"]["before"]
    assert set(before["right"]) == {*WORDS.tag_of, "svamp"} and before["asked"] == 28 + 3


def _with(tmp_path, config, **changed):
    lines = [line for line in config.splitlines() if line.split(":")[0] not in changed]
    file = tmp_path / "changed.yaml"
    file.write_text("\n".join([*lines, *(f"{name}: {value}" for name, value in changed.items())]))
    return file


def test_beyond_the_last_limit_the_parents_layers_come_back(given, tmp_path, monkeypatch):
    """Quality is planted: what it hangs on is one layer, and only the parent's weights in it are good."""
    asked = given(hidden=64, steps=0, config=_with(tmp_path, CONFIG, fall_back_above=0.1).read_text())
    parent = AutoModelForCausalLM.from_pretrained(asked.model)
    vital = parent.model.layers[0].mlp.down_proj.weight

    def measure(model):
        layer = model.model.layers[0].mlp.down_proj
        good = type(layer) is torch.nn.Linear and torch.equal(layer.weight, vital)
        return Found({}, {"text": 0.5 if good else 0.1}, 0)

    monkeypatch.setattr(workbook, "material", _planted(workbook.material, measure))
    monkeypatch.setattr(phase, "_cost", _dear(phase._cost))
    run_quantize(asked, lambda line: None)
    packed = load_packed(asked.out / "packed")
    layers = [m for m in packed.modules() if isinstance(m, PackedTernaryLinear)]
    assert 0 < len(layers) < 7 and type(packed.model.layers[0].mlp.down_proj) is torch.nn.Linear
    assert type(packed.model.layers[0].self_attn.o_proj) is torch.nn.Linear, "it cost too much from the first"
    assert (
        json.loads((asked.out / "report.json").read_text())["quality"]["layers put back"]["probability"]["text"] == 0.5
    )


def test_a_fine_tuning_that_made_it_worse_is_left_out(given, tmp_path, monkeypatch):
    """Rounding alone was within the limit: no layer has to be put back."""
    asked, told = given(hidden=64, config=_with(tmp_path, CONFIG, fall_back_above=0.1).read_text()), []
    found = iter([0.5, 0.49, 0.1, 0.49])
    planted = _planted(workbook.material, lambda model: Found({}, {"text": next(found)}, 0))
    monkeypatch.setattr(workbook, "material", planted)
    run_quantize(asked, told.append)
    report = json.loads((asked.out / "report.json").read_text())
    assert report["ternary layers"] == 7 and list(report["quality"])[-2:] == ["not fine-tuned", "packed"]
    assert any("fine-tuning made it worse than rounding had" in line for line in told)


def _dear(real):
    """Costs of layers as they are, but for one that costs too much."""

    def cost(model, layer, *rest):
        return 9.0 if layer is model.model.layers[0].self_attn.o_proj else real(model, layer, *rest)

    return cost


def test_where_nothing_can_stay_ternary_it_says_so(given, tmp_path, monkeypatch):
    asked = given(hidden=64, steps=0, config=_with(tmp_path, CONFIG, fall_back_above=0.1).read_text())
    found = iter([0.5] + [0.1] * 20)
    planted = _planted(workbook.material, lambda model: Found({}, {"text": next(found)}, 0))
    monkeypatch.setattr(workbook, "material", planted)
    with pytest.raises(ParameterError, match="no layer can stay ternary"):
        run_quantize(asked, lambda line: None)
    assert not (asked.out / "packed").exists()


def _planted(real, measure):
    return lambda *args: replace(real(*args), measure=measure)


def test_broken_off_while_it_fine_tunes_it_ends_in_the_same_bytes(given, tmp_path, monkeypatch):
    whole, broken = given(hidden=64), given(hidden=64, out=tmp_path / "broken")
    run_quantize(whole, lambda line: None)

    def stop_after_two(line):
        if line.startswith("  step 1:"):
            from forgelib.core.loop import Control

            Control(broken.out).request("stop")

    with pytest.raises(Exception, match="stopped on request"):
        run_quantize(broken, stop_after_two)
    with pytest.raises(ParameterError, match="give --resume"):
        run_quantize(broken, lambda line: None)
    run_quantize(replace(broken, resume=True), lambda line: None)
    for name in ("ternary", "rest"):
        files = [(asked.out / "packed" / f"{name}.safetensors").read_bytes() for asked in (whole, broken)]
        assert files[0] == files[1]
    with pytest.raises(ParameterError, match="begun with another steps"):
        run_quantize(replace(broken, resume=True, steps=8), lambda line: None)


@pytest.mark.parametrize(
    "ended, code, words",
    [
        (KeyboardInterrupt(), 130, "forge: interrupted; the same command with --resume goes on"),
        (RunStopped(3, 9), 1, "forge: stopped on request after step 3 of 9: start it again to go on from there (the"),
        (CheckpointError("the disk is full"), 1, "forge: the disk is full (the same command with --resume"),
        (OSError(28, "No space left on device"), 1, "forge: the disk is full; free some space, and the same command"),
    ],
)
def test_what_ends_early_says_how_to_go_on(ended, code, words, monkeypatch):
    def end(asked, say):
        raise ended

    monkeypatch.setattr(workbook, "run_quantize", end)
    done = CliRunner().invoke(app, ["quantize", "--model", "m", "--out", "o"])
    assert done.exit_code == code and words in done.stderr


def test_two_processes_do_not_work_in_one_folder(given):
    """Nor does the refused one leave its own question there, which the work of the other would not answer."""
    asked, told = given(hidden=64, steps=0), []

    def try_another(line):
        if not told:
            command = [sys.executable, "-c", "from forgelib.cli import main; main()", "quantize", "--resume"]
            command += ["--model", str(asked.model), "--out", str(asked.out), "--config", str(asked.config)]
            told.append(subprocess.run([*command, "--steps", "7"], capture_output=True, text=True))

    run_quantize(asked, try_another)
    assert told[0].returncode == 2 and "another process is at work there" in told[0].stderr
    assert json.loads((asked.out / "asked.json").read_text())["steps"] == 0
    assert (asked.out / "packed").is_dir()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--export", "packed,onnx"], "--export packed,onnx: must be of packed, bitnet, gguf, tq1_0"),
        (["--eval-dataset", "nothing"], "--eval-dataset nothing: must be one of"),
        (["--export", "gguf"], "64 inputs: TQ1_0 and TQ2_0 store blocks of 256"),
        (["--model", "nowhere"], "neither a folder with a config.json nor a .gguf file"),
        (["--out", "pyproject.toml/out"], "cannot be made"),
        (["--out", "/proc/here"], "/proc/here: cannot be "),
    ],
)
def test_bad_input_is_refused_before_work(given, options, words):
    asked = given(hidden=64)
    command = ["quantize", "--model", str(asked.model), "--out", str(asked.out), *options]
    done = CliRunner().invoke(app, command)
    assert isinstance(done.exception, ParameterError) and words in str(done.exception), done.exception
    assert not asked.out.exists()


def test_a_wrong_setting_is_named_with_its_value(given, tmp_path):
    asked = given(hidden=64)
    for line, words in (
        ("muon_lr: fast", "muon_lr = 'fast'"),
        ("muonlr: 0.1", "muonlr = 0.1: Extra inputs"),
        ("rows: 0", "rows = 0"),
        ("- 1", "must be a flat list"),
        ("per_row: true\nput_back: 1e-3", "put_back = '1e-3'"),
    ):
        (tmp_path / "wrong.yaml").write_text(line)
        with pytest.raises(ParameterError, match="--config") as told:
            settings(replace(asked, config=tmp_path / "wrong.yaml"))
        assert words in str(told.value)
    with pytest.raises(ParameterError, match=r"threshold = 9\.9: every weight of model\.layers\.0.* becomes zero"):
        run_quantize(replace(asked, config=_with(tmp_path, CONFIG, threshold=9.9)), str)
    with pytest.raises(ParameterError, match="scale for each row"):
        run_quantize(replace(asked, exports=("bitnet",), config=_with(tmp_path, CONFIG, per_row="true")), str)
    assert not asked.out.exists()


def test_a_finished_folder_is_finished_and_a_strangers_folder_is_no_beginning(given, tmp_path):
    asked, told = given(hidden=64, steps=0), []
    run_quantize(asked, told.append)
    before = (asked.out / "packed" / "rest.safetensors").stat().st_mtime_ns
    run_quantize(replace(asked, resume=True), told.append)
    assert told[-1] == f"{asked.out} is finished already"
    assert (asked.out / "packed" / "rest.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ParameterError, match="nothing was begun in"):
        run_quantize(replace(asked, out=asked.model, resume=True), str)
    assert not (asked.model / "asked.json").exists()


def test_a_further_export_of_a_finished_folder_trains_nothing_anew(given, monkeypatch):
    """And what a kill left of an export is none: what is there, the report says, which is written when it is whole."""
    asked, told = given(hidden=256, steps=0), []
    run_quantize(asked, str)
    (asked.out / "model-TQ2_0.gguf").write_bytes(b"GGUF")
    (asked.out / "bitnet").mkdir()
    (asked.out / "bitnet" / "model.safetensors").write_bytes(b"cut short")
    before = (asked.out / "packed" / "ternary.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(workbook, "quantize", lambda *_: pytest.fail("rounded anew"))
    run_quantize(replace(asked, resume=True, exports=("gguf", "bitnet")), told.append)
    assert (asked.out / "model-TQ2_0.gguf").stat().st_size > 10_000
    assert AutoConfig.from_pretrained(asked.out / "bitnet").quantization_config["quant_method"] == "bitnet"
    assert (asked.out / "packed" / "ternary.safetensors").stat().st_mtime_ns == before
    report = json.loads((asked.out / "report.json").read_text())
    assert [row["part"] for row in report["sizes"]][-3:] == ["packed, on disk", "bitnet, on disk", "gguf, on disk"]
    assert report["quality"] and any("gguf, on disk" in line for line in told)


def test_another_model_at_the_same_place_is_another_question(given):
    asked = given(hidden=64, steps=0)
    run_quantize(asked, str)
    (asked.out / "report.json").unlink()
    given(hidden=64)
    with pytest.raises(ParameterError, match="begun with another files of the model"):
        run_quantize(replace(asked, resume=True), str)
    (asked.out / "asked.json").write_text("{")
    with pytest.raises(ParameterError, match=r"asked\.json is damaged"):
        run_quantize(replace(asked, resume=True), str)


def test_a_full_disk_is_a_sentence(given, monkeypatch):
    def full(*_):
        raise Exception("No space left on device (os error 28)")

    asked = given(hidden=64, steps=0)
    with (
        monkeypatch.context() as patch,
        pytest.raises(ParameterError, match=r"cannot be written .* make room and give"),
    ):
        patch.setattr(workbook, "save_packed", full)
        run_quantize(asked, str)
    run_quantize(replace(asked, resume=True), str)


def test_where_every_layer_costs_too_much_it_says_so_and_the_folder_is_free(given, monkeypatch):
    asked = given(hidden=64, steps=0)
    with monkeypatch.context() as patch, pytest.raises(ParameterError, match=r"each costs more than put_back = 0\.5"):
        patch.setattr(phase, "_cost", lambda *args: 9.0)
        run_quantize(asked, str)
    run_quantize(asked, str)
    assert (asked.out / "packed").is_dir()


def test_rows_longer_than_the_model_reads_are_refused(given, tmp_path):
    asked = given(hidden=64, steps=0, max_position_embeddings=40)
    with pytest.raises(ParameterError, match="max_tokens = 48: the model reads 40 tokens at most, set it to 32"):
        run_quantize(asked, str)
    shorter = _with(tmp_path, CONFIG, max_tokens=32, max_new_tokens=16)
    with pytest.raises(ParameterError, match="max_tokens = 32 and max_new_tokens = 16: the model reads 40"):
        run_quantize(replace(asked, dataset="svamp", config=shorter), str)
    assert not asked.out.exists()
    run_quantize(replace(asked, config=shorter), str)


def test_layers_that_nothing_is_known_of_stay_and_are_named(given, monkeypatch):
    """An expert that no row is led to: here a layer beside the model's path."""
    asked, told, real = given(hidden=64, steps=0), [], workbook.load_any

    def with_a_spare(path, device):
        model, tokenizer = real(path, device)
        model.model.layers[0].spare = torch.nn.Linear(64, 64)
        return model, tokenizer

    monkeypatch.setattr(workbook, "load_any", with_a_spare)
    run_quantize(asked, told.append)
    assert "  model.layers.0.spare is not reached by the calibration and stays" in told
    records = [json.loads(line) for line in (asked.out / "layers.jsonl").read_text().splitlines()]
    assert [record["name"] for record in records if not record["reached"]] == ["model.layers.0.spare"]


def test_a_model_is_judged_by_answers_only_where_it_gave_some():
    good, poor = Found({"math": 0.3}, {"math": 0.2}, 100), Found({"math": 0.05}, {"math": 0.2}, 100)
    assert enough_right(good) and not enough_right(poor) and not enough_right(Found({}, {"math": 0.2}, 0))
    assert good.judged(good) == {"math": 0.3} and good.judged(poor) == {"math": 0.2}
    assert phase.kept(good.judged(good), poor.judged(good)) == pytest.approx(1 / 6)
