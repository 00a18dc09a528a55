"""A `bitnet` folder is read by plain transformers, in a process that never heard of forgelib, with equal logits."""

import json
import os
import subprocess
import sys

import pytest
import torch
from packed_models import build, logits, tokens
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from forgelib.quant import ExportRefused, PackedTernaryLinear, Rounding, check_bitnet, convert, pack_model, save_bitnet

#: Reads folders and writes the logits of the same tokens; fails if anything of forgelib came along.
READER = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(input_ids=load_file(folder + "/../tokens.safetensors")["ids"]).logits
    save_file({"logits": logits.contiguous()}, folder + ".logits")
assert not [name for name in sys.modules if name.startswith("forgelib")]
"""


def packed(family="llama", rounding=None, keep=()):
    model = build(family)
    convert(model, rounding, keep=keep, smallest=32)
    return pack_model(model)


def packed_gelu():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**build("llama").config.to_dict(), "hidden_act": "gelu"})).eval()
    convert(model, smallest=32)
    return pack_model(model)


def read_by_transformers(folders, **environment):
    """The logits [B, T, V] that a new process without forgelib gets from each folder."""
    save_file({"ids": tokens()}, folders[0].parent / "tokens.safetensors")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    command, where = [sys.executable, "-c", READER, *map(str, folders)], folders[0].parent
    done = subprocess.run(command, cwd=where, env=clean, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return [load_file(f"{folder}.logits")["logits"] for folder in folders]


def apart(found, expected):
    """Largest difference of logits over the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """How far apart a model and what transformers reads are: tied, untied, of another activation, changed after it was
    written."""
    folder = tmp_path_factory.mktemp("bitnet")
    models = {
        "tied": packed("llama", keep=["model.layers.1.mlp.up_proj"]),
        "untied": packed("llama-untied"),
        "gelu": packed_gelu(),
        "changed": packed("llama"),
    }
    folders = [save_bitnet(model, folder / name) for name, model in models.items()]
    models["changed"].model.layers[0].mlp.up_proj.scales.mul_(1.001)
    found = read_by_transformers(folders, TORCH_COMPILE_DISABLE="1")
    return {name: apart(read, logits(model)) for (name, model), read in zip(models.items(), found, strict=True)}


def test_plain_transformers_gives_equal_logits(read):
    """To float32's last bits; the same measure sees a scale that is a thousandth off."""
    assert read["tied"] < 1e-6 and read["untied"] < 1e-6 and read["gelu"] < 1e-6
    assert read["changed"] > 1e-4


@pytest.mark.slow
def test_compiled_as_transformers_does_by_default_they_are_equal_too(tmp_path):
    model = packed()
    (found,) = read_by_transformers([save_bitnet(model, tmp_path / "bitnet")])
    assert apart(found, logits(model)) < 1e-6


def test_the_file_is_small_and_names_what_stays(tmp_path):
    model = packed(keep=["model.layers.0.self_attn.q_proj"])
    save_bitnet(model, tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert found["quant_method"] == "bitnet" and found["linear_class"] == "bitlinear"
    assert set(found["modules_to_not_convert"]) == {"lm_head", "model.layers.0.self_attn.q_proj"}
    stored = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in stored, "tied to the embedding"
    for name, layer in model.named_modules():
        if isinstance(layer, PackedTernaryLinear):
            weight = stored[f"{name}.weight"]
            assert weight.dtype == torch.uint8 and 4 * weight.numel() == layer.out_features * layer.in_features
    assert stored["model.embed_tokens.weight"].dtype == torch.float16


def test_what_transformers_does_not_know_is_refused_before_anything_is_written(tmp_path):
    odd = LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=70, num_hidden_layers=1, vocab_size=9))
    convert(odd)
    twice = build("llama")
    twice.model.layers[1].input_layernorm = twice.model.layers[0].input_layernorm
    convert(twice, smallest=32)
    tied_by_hand = build("llama-untied")
    tied_by_hand.lm_head.weight = tied_by_hand.model.embed_tokens.weight
    convert(tied_by_hand, smallest=32)
    for model, message in (
        (packed("cognate"), "no architecture 'cognate'"),
        (packed("gpt2"), "is a Conv1D"),
        (pack_model(odd), "70 outputs"),
        (pack_model(twice), "layers.1.input_layernorm.weight is model.layers.0.input_layernorm"),
        (pack_model(tied_by_hand), "lm_head.weight is model.embed_tokens.weight"),
        (packed(rounding=Rounding(per_row=True)), "per_row=False"),
    ):
        with pytest.raises(ExportRefused, match=message):
            save_bitnet(model, tmp_path / "bitnet")
    tied = build("llama-untied")
    tied.model.layers[1].mlp.up_proj.weight = tied.model.layers[0].mlp.up_proj.weight
    tied.all_tied_weights_keys = {"model.layers.1.mlp.up_proj.weight": "model.layers.0.mlp.up_proj.weight"}
    convert(tied, smallest=32)
    with pytest.raises(ExportRefused, match="is tied to another, and transformers ties no packed"):
        check_bitnet(tied)
    with pytest.raises(ValueError, match="no packed layer"):
        save_bitnet(build("llama"), tmp_path / "bitnet")
    assert not (tmp_path / "bitnet").exists()
