"""A GGUF file holds the packed model: read back tensor by tensor, and as a model by transformers."""

import json

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from packed_models import build, tokens
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from forgelib.data.tokenizer import train_bpe
from forgelib.quant import (
    GGUF_KINDS,
    ExportRefused,
    PackedTernaryLinear,
    Rounding,
    check_gguf,
    convert,
    pack_model,
    save_gguf,
)
from forgelib.quant.gguf_tokenizer import tokenizer_fields

TEXT, END = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
#: A post-processor that ends every text with a token.
AT_THE_END = {
    "type": "TemplateProcessing",
    "single": [TEXT, END],
    "pair": [TEXT, {"Sequence": {"id": "B", "type_id": 1}}],
}
AT_THE_END |= {
    "special_tokens": {END["SpecialToken"]["id"]: {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
}
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}


def packed(vocabulary=50, per_row=True, **changed):
    torch.manual_seed(0)
    sizes = WIDE | {"vocab_size": vocabulary, "num_key_value_heads": 2, "initializer_range": 0.1} | changed
    model = LlamaForCausalLM(LlamaConfig(**sizes)).eval()
    convert(model, Rounding(per_row=per_row), keep=["model.layers.1.mlp.down_proj"])
    return pack_model(model)


def dense(model):
    """The same weights in plain layers, scales rounded to float16 as the file has them: what transformers computes."""
    plain = LlamaForCausalLM(model.config).eval()
    state = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedTernaryLinear):
            state[f"{name}.weight"] = module.weight.sign() * module.scales.half().float()[:, None]
    plain.load_state_dict({**{n: t for n, t in model.state_dict().items() if n in plain.state_dict()}, **state})
    return plain


def rotary(weight, heads):
    """Row 2 i + j of a head in the file is row j d / 2 + i of the head in transformers, one by one."""
    size = weight.shape[0] // heads
    order = [h * size + (r % 2) * (size // 2) + r // 2 for h in range(heads) for r in range(size)]
    return weight[order]


@pytest.mark.parametrize("kind", GGUF_KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_comes_back(tmp_path, kind, tied):
    model = packed(tie_word_embeddings=tied)
    save_gguf(model, tmp_path / "m.gguf", kind=kind)
    found = {t.name: t for t in GGUFReader(tmp_path / "m.gguf").tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    weights = dense(model).state_dict()
    if tied:
        del weights["lm_head.weight"]
    assert len(found) == len(weights)
    ternary = 0
    for name, weight in weights.items():
        stored = found[names.get_name(name, try_suffixes=(".weight",))]
        heads = 4 if "q_proj" in name else 2 if "k_proj" in name else None
        expected = weight if heads is None else rotary(weight, heads)
        assert np.array_equal(dequantize(stored.data, stored.tensor_type).reshape(weight.shape), expected.numpy()), name
        if isinstance(model.get_submodule(name.removesuffix(".weight")), PackedTernaryLinear):
            ternary += 1
            assert stored.tensor_type.name == kind and stored.n_bytes == weight.numel() // 256 * (66, 54)["1" in kind]
        else:
            assert stored.tensor_type.name == ("F32" if weight.dim() == 1 else "F16")
    assert ternary == 2 * 7 - 1


@pytest.mark.parametrize("kind", GGUF_KINDS)
def test_transformers_reads_the_file_as_the_same_model(tmp_path, kind):
    model = packed(num_key_value_heads=4)
    save_gguf(model, tmp_path / "m.gguf", kind=kind)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        expected, found = dense(model)(tokens()).logits, again(tokens()).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_tokenizer_lies_in_the_file(tmp_path):
    texts = ["Question: 12 and 7?\nAnswer: nineteen, it's said"] * 50
    tokenizer, _ = train_bpe(texts, 320)
    tokenizer.add_tokens(["<step>"])
    model = packed(len(tokenizer) + 3)
    assert save_gguf(model, tmp_path / "m.gguf", tokenizer) == ""
    fields = GGUFReader(tmp_path / "m.gguf").fields
    listed = fields["tokenizer.ggml.tokens"].contents()
    assert [listed[i] for i in range(len(tokenizer))] == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    types = fields["tokenizer.ggml.token_type"].contents()
    assert types[tokenizer.eos_token_id] == TokenType.CONTROL and types[-3:] == [TokenType.UNUSED] * 3
    assert types[tokenizer.convert_tokens_to_ids("<step>")] == TokenType.USER_DEFINED
    assert types[tokenizer.convert_tokens_to_ids("1")] == TokenType.NORMAL
    assert fields["tokenizer.ggml.pre"].contents() == "smollm", "digits one by one, as this tokenizer splits them"
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer.eos_token_id
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")  # its reader knows no user-defined tokens
    for text in ("nineteen, it's said", " and 7? nineteen"):
        assert again(text, add_special_tokens=False)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_tokenizer_that_llama_cpp_splits_otherwise_stays_out(tmp_path):
    from tokenizers import pre_tokenizers

    tokenizer, _ = train_bpe(["some text"] * 9, 300)
    size = len(tokenizer)
    assert tokenizer_fields(tokenizer, size)[1] == "" and "the model 200 rows" in tokenizer_fields(tokenizer, 200)[1]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    why_not = save_gguf(packed(300), tmp_path / "m.gguf", tokenizer)
    assert "Whitespace" in why_not
    assert GGUFReader(tmp_path / "m.gguf").fields["tokenizer.ggml.model"].contents() == "none"


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda stored: stored["model"].update(ignore_merges=True), "ignore_merges"),
        (lambda stored: stored["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
        (lambda stored: stored["added_tokens"][0].update(lstrip=True), "rules of its own (lstrip)"),
        (lambda stored: stored.update(post_processor=AT_THE_END), "other tokens around a text"),
    ],
    ids=["ignore_merges", "suffix", "lstrip", "end"],
)
def test_a_tokenizer_with_rules_that_llama_cpp_has_not_stays_out(change, told):
    tokenizer, _ = train_bpe(["some text"] * 9, 300)
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    change(stored)
    changed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(stored)), eos_token="<|endoftext|>"
    )
    fields, why_not = tokenizer_fields(changed, 400)
    assert fields is None and told in why_not


def test_a_token_that_begins_a_text_is_told_apart_from_one_that_ends_it():
    tokenizer, _ = train_bpe(["some text"] * 9, 300)
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    stored["post_processor"] = AT_THE_END | {"single": AT_THE_END["single"][::-1]}
    first = stored["added_tokens"][0]["content"]
    options = {"eos_token": first, "bos_token": first}
    begun = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(stored)), **options)
    assert tokenizer_fields(begun, 400)[0].add_bos and not tokenizer_fields(tokenizer, 400)[0].add_bos


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda: pack_model(_converted(build("cognate"))), "'cognate' is not written here"),
        (lambda: packed(hidden_size=320, num_attention_heads=5, num_key_value_heads=5), "320 inputs.*256 must divide"),
        (lambda: packed(mlp_bias=True), "biases"),
        (lambda: packed(hidden_act="gelu"), "feed-forward uses gelu.*SiLU"),
        (lambda: packed(hidden_act="relu"), "feed-forward uses relu.*SiLU"),
        (lambda: packed(is_causal=False), "is_causal"),
        (lambda: packed(layer_types=["full_attention", "sliding_attention"], sliding_window=4), "sliding_attention"),
        (lambda: layer_used_twice(), "layers.1.mlp.gate_proj.* is model.layers.0.mlp.gate_proj"),
        (lambda: scaled(7e4), "layers.0.mlp.up_proj: .*70000.*65504"),
        (lambda: scaled(2e-8), "layers.0.mlp.up_proj: .*2e-08"),
        (lambda: converted_only(7e4), "layers.0.mlp.up_proj: .*70000.*65504"),
        (lambda: packed(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), "type 'linear'"),
    ],
)
def test_what_llama_cpp_would_not_know_is_refused_before_anything_is_written(tmp_path, model, message):
    with pytest.raises(ExportRefused, match=message):
        save_gguf(model(), tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="TQ2_0 or TQ1_0"):
        save_gguf(packed(), tmp_path / "m.gguf", kind="Q4_0")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [6e4, 1e-4])
def test_a_scale_that_float16_holds_is_written_to_1_part_in_2048(tmp_path, scale):
    model = scaled(scale)
    save_gguf(model, tmp_path / "m.gguf")
    assert apart(tmp_path / "m.gguf", model) <= 2**-11


def test_a_row_that_vanishes_beside_others_is_no_reason_to_refuse(tmp_path):
    model = packed()
    model.get_submodule(UP).scales[3] = 1e-9
    save_gguf(model, tmp_path / "m.gguf")
    assert apart(tmp_path / "m.gguf", model) < 2**-11


def test_the_rest_may_be_of_any_type(tmp_path):
    model = LlamaForCausalLM(LlamaConfig(**WIDE, vocab_size=50))
    convert(model)
    pack_model(model.to(torch.bfloat16))
    save_gguf(model, tmp_path / "m.gguf")
    found = {t.name: t for t in GGUFReader(tmp_path / "m.gguf").tensors}["token_embd.weight"]
    stored = torch.from_numpy(dequantize(found.data, found.tensor_type))
    assert torch.equal(stored, model.model.embed_tokens.weight.float())


UP = "model.layers.0.mlp.up_proj"


def layer_used_twice() -> nn.Module:
    model = LlamaForCausalLM(LlamaConfig(**WIDE, vocab_size=50))
    model.model.layers[1].mlp = model.model.layers[0].mlp
    convert(model)
    return pack_model(model)


def scaled(scale: float) -> nn.Module:
    model = packed()
    model.get_submodule(UP).scales.fill_(scale)
    return model


def converted_only(scale: float) -> nn.Module:
    """Asked before it is packed, as `forge quantize` does before it starts."""
    model = LlamaForCausalLM(LlamaConfig(**WIDE, vocab_size=50))
    convert(model)
    nn.init.constant_(model.get_submodule(UP).weight, scale)
    check_gguf(model)
    return pack_model(model)


def apart(file, model: nn.Module) -> float:
    """How far the layer's weight in the file is from the model's, as a share of its length."""
    stored = {t.name: t for t in GGUFReader(file).tensors}["blk.0.ffn_up.weight"]
    weight = model.get_submodule(UP).weight.numpy().astype(np.float64)
    return np.linalg.norm(dequantize(stored.data, stored.tensor_type) - weight) / np.linalg.norm(weight)


def _converted(model: nn.Module) -> nn.Module:
    convert(model, smallest=32)
    return model
