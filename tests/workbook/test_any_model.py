"""A model from outside is read whole or refused: what, where and why, and never filled with random numbers."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForCausalLM,
    BertConfig,
    BertForMaskedLM,
    ByT5Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MptConfig,
    MptForCausalLM,
)

from forgelib.data.tokenizer import train_bpe
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.workbook.any_model import context, load_any
from forgelib.workbook.params import ParameterError

WEIGHTS, UP = "model.safetensors", "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path):
    """A Llama with two layers and its tokenizer."""
    tokenizer, _ = train_bpe(["one and two are three"] * 9, 300)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=77, **sizes))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def config(folder, **changed):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def refusal(folder):
    with pytest.raises(ParameterError) as told:
        load_any(folder, "cpu")
    assert str(told.value).startswith(f"--model {folder}: ")
    return str(told.value)


def test_a_whole_model_is_read_in_float32_and_knows_its_context(folder):
    model, tokenizer = load_any(folder, "cpu")
    assert model.dtype == torch.float32 and context(model) == 77 and tokenizer.eos_token_id is not None


def test_mpt_names_its_context_otherwise():
    assert context(MptForCausalLM(MptConfig(d_model=8, n_heads=2, n_layers=1, max_seq_len=64, vocab_size=9))) == 64


def test_weights_that_the_files_lack_are_named(folder):
    weights(folder, lambda tensors: tensors.pop(UP))
    assert f"{UP} is not in its files" in refusal(folder)
    config(folder, num_hidden_layers=4)
    assert re.search(r"model\.layers\S+, \S+, \S+ and 16 more are not in its files", refusal(folder))


def test_a_model_without_a_head_and_one_that_sees_later_tokens_are_no_language_models(folder, tmp_path):
    LlamaModel(LlamaConfig.from_pretrained(folder)).save_pretrained(folder)
    assert "lm_head.weight is not in its files" in refusal(folder)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForMaskedLM(BertConfig(vocab_size=300, **sizes)).save_pretrained(folder)
    assert "it sees later tokens" in refusal(folder)


def test_a_class_that_compares_a_token_with_itself_is_refused(folder):
    """transformers' decoders of BART's kind do not move the labels: training would teach them to repeat."""
    sizes = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
    vocab_size = len(AutoTokenizer.from_pretrained(folder))
    BartForCausalLM(BartConfig(vocab_size=vocab_size, is_decoder=True, **sizes)).save_pretrained(folder)
    assert "how well it repeats a token" in refusal(folder)


def test_an_adapter_beside_the_model_is_refused(folder):
    """transformers would put it into the model, and what is made of that no packed folder can name."""
    (folder / "adapter_config.json").write_text("{}")
    assert "holds an adapter" in refusal(folder)


def test_a_configuration_that_quantizes_nothing_is_no_quantized_model(folder):
    config(folder, quantization_config=None)
    assert load_any(folder, "cpu")[0].dtype == torch.float32


def test_a_folders_own_code_is_never_run(folder, monkeypatch):
    ran = folder / "ran"
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')")
    auto = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    config(folder, model_type="mine", auto_map=auto)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    assert "contains custom code" in refusal(folder) and not ran.exists()


def test_a_cognate_model_sees_no_later_token(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = CognateForCausalLM(CognateConfig(vocab_size=len(tokenizer), d_model=32, n_layers=2, n_heads=2, d_ff=48))
    model.save_pretrained(folder)
    assert type(load_any(folder, "cpu")[0]) is CognateForCausalLM


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_damaged_numbers_are_named(folder, number):
    weights(folder, lambda tensors: tensors["model.layers.0.input_layernorm.weight"].fill_(number))
    assert "NaN or infinity in its weights: model.layers.0.input_layernorm.weight is damaged" in refusal(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)
    wanted = f"its tokenizer has token {len(tokenizer) - 1} and its embedding {len(tokenizer) - 1} rows: they belong"
    assert wanted in refusal(folder)


def test_a_token_beyond_the_embedding_is_seen_where_numbers_are_left_out(folder):
    file = folder / "tokenizer.json"
    stored = json.loads(file.read_text())
    ids = stored["model"]["vocab"]
    ids[max(ids, key=ids.get)] = 5000
    file.write_text(json.dumps(stored))
    assert "its tokenizer has token 5000 and its embedding" in refusal(folder)


def test_a_missing_tokenizer_is_said(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "cannot be read (its tokenizer: " in refusal(folder)


@pytest.mark.parametrize(
    "changed", [{"hidden_act": "nope"}, {"num_attention_heads": 0}, {"hidden_size": "64"}], ids=str
)
def test_a_config_that_does_not_fit_is_no_traceback(folder, changed):
    config(folder, **changed)
    assert "cannot be read (" in refusal(folder)


def test_weights_of_another_shape_are_named(folder):
    config(folder, intermediate_size=128)
    name = "model.layers.0.mlp.down_proj.weight"
    assert f"{name} is [64, 96] in its files, its config.json wants [64, 128]" in refusal(folder)


def test_what_is_ternary_already_is_said_and_where_the_models_of_a_finished_folder_lie(folder):
    config(folder, quantization_config={"quant_method": "bitnet"})
    assert "is quantized already" in refusal(folder)
    (folder / "packed").mkdir()
    (folder / "packed" / "packed.json").write_text("{}")
    assert "its models lie in the folders below" in refusal(folder)
    assert "is packed already" in refusal(folder / "packed")


def test_a_slow_tokenizer_is_named(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    ByT5Tokenizer().save_pretrained(folder)
    assert "its tokenizer is a slow one" in refusal(folder)


@pytest.mark.parametrize("size", [0, 5, 4000])
def test_a_cut_file_is_no_traceback(folder, size):
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])
    assert "cannot be read (the model: " in refusal(folder)
