"""Which layers become ternary, and that nothing else of the model changes."""

import copy
import pickle

import pytest
import torch
from packed_models import build, logits, tokens
from safetensors.torch import load_file
from torch import nn
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, RwkvConfig, RwkvForCausalLM

from forgelib.quant import (
    PackedTernaryLinear,
    Rounding,
    TernaryLinear,
    convert,
    pack_model,
    plan,
    put_back,
    save_packed,
    share_inputs,
    sizes,
)

VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}
FAMILIES = ("llama", "llama-untied", "gpt2", "cognate")


@pytest.mark.parametrize("family", FAMILIES)
def test_inner_projections_become_ternary_and_the_rest_stays(family):
    model = build(family)
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is embedding.weight
    layers = {layer.name: layer for layer in convert(model)}
    assert layers["lm_head"].becomes == "kept" and "head" in layers["lm_head"].reason
    assert model.get_output_embeddings() is head and type(head) is nn.Linear
    assert (head.weight is embedding.weight) == tied == (family != "llama-untied")
    for name, layer in layers.items():
        assert isinstance(model.get_submodule(name), TernaryLinear) == (layer.becomes == "ternary")
    kept = [n.rpartition(".")[2] for n, layer in layers.items() if layer.becomes == "kept"]
    if family == "cognate":
        assert set(kept) == {"lm_head", "gates", "probe"}
    elif family == "llama":  # two key heads of 16: narrower than a projection is
        assert set(kept) == {"lm_head", "k_proj", "v_proj"}
    else:
        assert set(kept) <= {"lm_head", "k_proj", "v_proj"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_model_without_rounding_is_the_model(family):
    model = build(family)
    before = logits(model)
    for layer in convert(model):
        if layer.becomes == "ternary":
            model.get_submodule(layer.name).share = 0.0
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_put_back_is_what_it_was(family):
    model = build(family)
    before, state = logits(model), {name: t.clone() for name, t in model.state_dict().items()}
    kinds = {name: type(module) for name, module in model.named_modules()}
    for layer in convert(model):
        if layer.becomes == "ternary":
            put_back(model, layer.name)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    after = model.state_dict()
    assert list(after) == list(state) and all(torch.equal(after[name], t) for name, t in state.items())
    assert torch.equal(logits(model), before)
    with pytest.raises(ValueError, match="only a TernaryLinear"):
        put_back(model, "lm_head")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_packed_model_computes_what_the_trained_one_did(family):
    """But for activations that lie between two integers, where the last bit of a sum decides."""
    model = build(family)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.half())
    full = logits(model)
    convert(model, Rounding(per_row=True), smallest=32)
    trained = logits(model)
    pack_model(model)
    apart = (logits(model) - trained).abs().mean()
    assert apart < 0.01 * trained.std() and apart < 0.02 * (full - trained).abs().mean()
    assert not any(p.requires_grad for p in model.parameters())


def test_training_a_converted_model_lowers_its_loss():
    model = build("llama").train()
    convert(model, smallest=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids, losses = tokens(4, 16), []
    for _ in range(30):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_a_layer_that_cannot_be_converted_is_refused_with_the_reason():
    model = build("llama")
    layer = model.model.layers[0]
    with torch.no_grad():
        layer.self_attn.q_proj.weight[0, 0] = float("nan")
    layer.mlp.up_proj.register_forward_hook(lambda *_: None)

    class Special(nn.Linear):
        pass

    layer.mlp.down_proj = Special(96, 64)
    nn.utils.spectral_norm(layer.self_attn.o_proj)
    refused = {layer.name.rpartition(".")[2]: layer.reason for layer in convert(model) if layer.becomes == "refused"}
    assert set(refused) == {"q_proj", "up_proj", "down_proj", "o_proj"}
    assert "remove the norm first" in refused["o_proj"]
    assert "NaN" in refused["q_proj"] and "hooks" in refused["up_proj"] and "Special" in refused["down_proj"]
    assert type(layer.mlp.down_proj) is Special


def test_a_model_without_such_a_layer_is_refused_whole():
    model = build("cognate")
    everything = [layer.name for layer in plan(model)]
    with pytest.raises(ValueError, match="no layer that can be ternary"):
        convert(model, keep=everything)
    with pytest.raises(ValueError, match="no linear layers"):
        plan(model, keep=["nowhere"])
    with pytest.raises(ValueError, match="convert it first"):
        pack_model(model)


def test_a_packed_model_is_not_written_as_a_folder_that_transformers_would_fill_with_random_numbers(tmp_path):
    model = build("llama")
    convert(model, smallest=32)
    for packed in (pack_model(model), copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with pytest.raises(ValueError, match="save_packed, save_bitnet or save_gguf"):
            packed.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_rwkv_divides_some_weights_in_place_and_those_stay():
    """Between training and inference: packed before its first pass it would compute something else."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "attention_hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    model = RwkvForCausalLM(RwkvConfig(vocab_size=50, context_length=32, rescale_every=1, **sizes)).eval()
    refused = {layer.name.partition("blocks.0.")[2] for layer in convert(model) if "in place" in layer.reason}
    assert refused >= {"attention.output", "feed_forward.value"}
    x = torch.arange(8)[None]
    with torch.no_grad():
        expected = copy.deepcopy(model)(input_ids=x, use_cache=False).logits
        found = pack_model(model)(input_ids=x, use_cache=False).logits
    assert float((found - expected).norm()) < 0.05 * float(expected.norm()), "0.9 where they are packed too"


def test_a_configuration_that_keeps_its_vocabulary_elsewhere_is_packed_too():
    text = {"vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "head_dim": 16}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 4, "sliding_window": 8}
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=VISION)).eval()
    convert(model)
    pack_model(model)
    assert model.model.language_model.layers[0].self_attn.q_proj.shared is not None, "the example reached it"


def test_a_layer_used_twice_stays_one_layer():
    model = build("llama")
    layers = model.model.layers
    layers[1].mlp = layers[0].mlp
    convert(model)
    pack_model(model)
    assert layers[1].mlp.up_proj is layers[0].mlp.up_proj and isinstance(layers[0].mlp.up_proj, PackedTernaryLinear)


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_that_read_one_tensor_are_found_and_nothing_changes(family):
    model = build(family)
    convert(model, smallest=32)
    pack_model(model)
    shared = logits(model)
    groups = share_inputs(model, tokens())
    if family == "gpt2":
        assert groups == []
    elif family == "cognate":
        block, recursion = "model.blocks.0.", ("model.recursion.0.", "model.recursion.1.")
        projections = ("attention.k_proj", "attention.v_proj", "attention.q_proj")
        memory = ("memory.query", "memory.key", "memory.value")
        assert {block + name for name in (*projections, *memory)} in map(set, groups)
        keys_values = {layer + name for layer in recursion for name in projections[:2]}
        assert keys_values in map(set, groups), "the recursion's queries come from another tensor"
    else:
        first = "model.layers.0."
        assert {first + f"self_attn.{name}_proj" for name in "qkv"} in map(set, groups)
        assert {first + f"mlp.{name}_proj" for name in ("gate", "up")} in map(set, groups)
    for module in model.modules():
        if isinstance(module, PackedTernaryLinear):
            module.shared = None
    assert torch.equal(logits(model), shared)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_with_a_cache_is_generation_without(family):
    model = build(family)
    convert(model, smallest=32)
    pack_model(model)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids = tokens(1, 6)
    fast = model.generate(ids, **options)
    assert torch.equal(fast[:, 6:], logits(model, fast)[:, 5:-1].argmax(-1))


@pytest.mark.parametrize("factor, rounded", [(1.0, True), (0.0, True), (1e-3, True), (1e-7, False), (1e-30, False)])
def test_what_float16_would_lose_stays_float32(factor, rounded):
    model = build("llama-untied")
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table.mul_(factor)
    before = table.detach().clone()
    convert(model, smallest=32)
    pack_model(model)
    assert torch.equal(table, before.half().float() if rounded else before)


def test_a_few_values_that_vanish_are_no_reason_to_keep_a_tensor_in_float32():
    model = build("llama-untied")
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        table[:, ::2] *= 1e-9
    convert(model, smallest=32)
    pack_model(model)
    assert int((table[:, ::2] != 0).sum()) == 0 and bool((table[:, 1::2] != 0).all())


@pytest.mark.parametrize("per_row", [False, True])
def test_bytes_are_counted_by_part_and_tied_weights_once(per_row, tmp_path):
    model = build("llama")
    weights = sum(p.numel() for p in model.parameters())
    convert(model, Rounding(per_row=per_row), smallest=32)
    pack_model(model)
    rows = {row["part"]: row for row in sizes(model)}
    assert set(rows) == {"ternary layers", "embeddings", "norms"}
    assert sum(row["weights"] for row in rows.values()) == weights
    ternary, embeddings = rows["ternary layers"], rows["embeddings"]
    assert embeddings["stored bytes"] == 2 * 50 * 64 and embeddings["float32 bytes"] == 4 * 50 * 64
    outputs = sum(m.out_features for m in model.modules() if isinstance(m, PackedTernaryLinear))
    assert ternary["float32 bytes"] == 4 * ternary["weights"]
    assert ternary["resident bytes"] <= ternary["weights"] // 4 + 4 * outputs + 64 * 64
    written = load_file(save_packed(model, tmp_path) / "ternary.safetensors")
    assert ternary["stored bytes"] == sum(t.nbytes for t in written.values())
