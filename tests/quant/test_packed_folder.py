"""A packed folder gives back equal logits, or refuses: it never loads a half."""

import json

import pytest
import torch
from packed_models import build, logits
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from forgelib.quant import (
    PackedFolderError,
    PackedTernaryLinear,
    Rounding,
    convert,
    load_packed,
    pack_model,
    save_packed,
)

TERNARY, REST, INDEX = "ternary.safetensors", "rest.safetensors", "packed.json"


def packed(family: str = "llama", **rounding):
    model = build(family)
    convert(model, Rounding(**rounding), smallest=32)
    return pack_model(model)


@pytest.mark.parametrize("rounding", [{}, {"per_row": True}, {"threshold": 0.1}], ids=str)
@pytest.mark.parametrize("family", ["llama", "llama-untied", "gpt2", "cognate"])
def test_reloaded_logits_are_equal(family, rounding, tmp_path):
    model = packed(family, **rounding)
    loaded = load_packed(save_packed(model, tmp_path / "out"))
    assert torch.equal(logits(loaded), logits(model))
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == (family != "llama-untied")
    assert {n for n, m in loaded.named_modules() if isinstance(m, PackedTernaryLinear)} == {
        n for n, m in model.named_modules() if isinstance(m, PackedTernaryLinear)
    }
    groups = [
        {id(m.shared): len(m.shared.layers) for m in each.modules() if getattr(m, "shared", None)}.values()
        for each in (loaded, model)
    ]
    assert sorted(groups[0]) == sorted(groups[1])


def test_files_are_as_small_as_promised(tmp_path):
    model = packed()
    folder = save_packed(model, tmp_path)
    layers = [m for m in model.modules() if isinstance(m, PackedTernaryLinear)]
    weights = sum(m.in_features * m.out_features for m in layers)
    header = 8 + int.from_bytes((folder / TERNARY).read_bytes()[:8], "little")
    assert (folder / TERNARY).stat().st_size - header <= weights / 5 + (4 + 1) * len(layers), "a scale a layer"
    rest = load_file(folder / REST)
    assert "lm_head.weight" not in rest, "tied to the embedding, which is there"
    assert all(t.dtype == torch.float16 for t in rest.values())


def test_what_float16_cannot_hold_is_stored_as_it_is(tmp_path):
    model = build("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = 1e6
    convert(model)
    pack_model(model)
    loaded = load_packed(save_packed(model, tmp_path))
    assert float(loaded.model.norm.weight[3]) == 1e6
    assert torch.equal(logits(loaded), logits(model))


def test_a_model_that_was_not_packed_or_holds_nan_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="no packed layer"):
        save_packed(build("llama"), tmp_path)
    model = packed()
    model.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"norm.weight holds NaN"):
        save_packed(model, tmp_path)
    assert not (tmp_path / INDEX).exists()


@pytest.fixture(scope="module")
def folder_files(tmp_path_factory) -> dict[str, bytes]:
    folder = save_packed(packed(), tmp_path_factory.mktemp("packed"))
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def folder(folder_files, tmp_path):
    for name, content in folder_files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("name", [TERNARY, REST, INDEX, "config.json"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(PackedFolderError, match=name):
        load_packed(folder)


@pytest.mark.parametrize("name", [TERNARY, REST, INDEX])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_file_cut_short_is_refused(folder, name, share):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(PackedFolderError, match=name):
        load_packed(folder)


LAYER = "model.layers.0.mlp.up_proj"


def above_242(t):
    t[f"{LAYER}.codes"][7] = 250


def shorter(t):
    t[f"{LAYER}.codes"] = t[f"{LAYER}.codes"][:-1].clone()


def other_type(t):
    t[f"{LAYER}.codes"] = t[f"{LAYER}.codes"].to(torch.int16)


def nan_scale(t):
    t[f"{LAYER}.scales"][0] = float("nan")


def infinite_scale(t):
    t[f"{LAYER}.scales"][0] = float("inf")


def negative_scale(t):
    t[f"{LAYER}.scales"][0] = -1


def half_scales(t):
    t[f"{LAYER}.scales"] = t[f"{LAYER}.scales"].half()


def two_scales(t):
    t[f"{LAYER}.scales"] = t[f"{LAYER}.scales"][:1].repeat(2)


def fewer_scales(t):
    t[f"{LAYER}.scales"] = t[f"{LAYER}.scales"][:-1].clone()


def no_scales(t):
    del t[f"{LAYER}.scales"]


def one_too_many(t):
    t["model.extra.codes"] = torch.zeros(3, dtype=torch.uint8)


@pytest.mark.parametrize(
    "change",
    [
        *(above_242, shorter, other_type, nan_scale, infinite_scale, negative_scale),
        *(half_scales, two_scales, fewer_scales, no_scales, one_too_many),
    ],
)
def test_tampered_layers_are_refused(folder, change):
    tensors = load_file(folder / TERNARY)
    change(tensors)
    save_file(tensors, folder / TERNARY)
    with pytest.raises(PackedFolderError, match=f"{LAYER}|extra"):
        load_packed(folder)


def test_a_tampered_rest_is_refused(folder):
    tensors = load_file(folder / REST)
    for change, message in [
        ({"model.norm.weight": torch.full((64,), float("nan"))}, "NaN"),
        ({"model.norm.weight": torch.ones(64, dtype=torch.int64)}, "int64"),
        ({"model.norm.weight": torch.ones(63, dtype=torch.float16)}, "does not fit"),
        ({"model.surplus": torch.ones(3)}, "model.surplus"),
    ]:
        save_file({**tensors, **change}, folder / REST)
        with pytest.raises(PackedFolderError, match=message):
            load_packed(folder)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"version": 2}, "version"),
        ({"format": "other"}, "format"),
        ({"surplus": 1}, "surplus"),
        ({"layers": {}}, "layers"),
        ({"tied": {"lm_head.weight": "nowhere"}}, "nowhere"),
        ({"shared_inputs": [["nowhere", LAYER]]}, "nowhere"),
        ({"shared_inputs": [[LAYER]]}, "shared_inputs"),
        ({"config_sha256": 5}, "config_sha256"),
    ],
    ids=str,
)
def test_a_tampered_index_is_refused(folder, change, message):
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, **change}))
    with pytest.raises(PackedFolderError, match=message):
        load_packed(folder)


@pytest.mark.parametrize("change", [{"outputs": 64}, {"inputs": 0}, {"outputs": 95}, {"bias": True}], ids=str)
def test_a_layer_of_another_size_is_refused(folder, change):
    index = json.loads((folder / INDEX).read_text())
    index["layers"][LAYER] |= change
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(PackedFolderError):
        load_packed(folder)


@pytest.mark.parametrize("stored", [torch.float16, None], ids=["stored in float16", "stored as it says"])
@pytest.mark.parametrize("dtype", ["float64", "complex64", "float8_e4m3fn", "bfloat16", "int64"])
def test_a_type_that_the_model_cannot_compute_with_is_refused(folder, dtype, stored):
    """bfloat16 as it says is a type like any other, but no float16 in the file would become it."""
    index, tensors = json.loads((folder / INDEX).read_text()), load_file(folder / REST)
    index["dtypes"]["model.norm.weight"] = dtype
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(stored or getattr(torch, dtype))
    (folder / INDEX).write_text(json.dumps(index))
    save_file(tensors, folder / REST)
    if dtype == "bfloat16" and stored is None:
        assert bool(torch.isfinite(logits(load_packed(folder))).all())
        return
    with pytest.raises(PackedFolderError, match=r"model\.norm\.weight"):
        load_packed(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_model_that_is_float64_throughout_is_loaded_as_it_was(family, tmp_path):
    model = build(family)
    convert(model, smallest=32)
    pack_model(model.double())
    loaded = load_packed(save_packed(model, tmp_path))
    assert torch.equal(logits(loaded), logits(model)) and logits(loaded).dtype == torch.float64


def change_config(folder, change, sealed=False):
    """Change config.json; without the seal, as in a folder written before there was one."""
    config, index = (json.loads((folder / name).read_text()) for name in ("config.json", INDEX))
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    if not sealed:
        del index["config_sha256"]
        (folder / INDEX).write_text(json.dumps(index))


OTHER_MODELS = [{"hidden_size": 128}, {"num_hidden_layers": 1}, {"model_type": "unheard-of"}]
DAMAGED = [
    *({"hidden_size": "96"}, {"rms_norm_eps": "a"}, {"layer_types": ["x", "y"]}, {"initializer_range": "z"}),
    *({"num_attention_heads": 0}, {"num_key_value_heads": 0}, {"head_dim": 0}, {"vocab_size": -3}),
    *({"pad_token_id": 9999}, {"hidden_act": "unheard-of"}, {"rope_parameters": "x"}, {"model_type": 5}),
]


@pytest.mark.parametrize("change", OTHER_MODELS + DAMAGED, ids=str)
def test_a_config_of_another_model_is_refused(folder, change):
    change_config(folder, change)
    with pytest.raises(PackedFolderError, match=r"config\.json builds no") as error:
        load_packed(folder)
    assert "forgelib.models" not in str(error.value), "a hint for Cognates only"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[]", "5", "null", "", "{"])
def test_a_config_that_is_none_is_refused(folder, text):
    change_config(folder, {})
    (folder / "config.json").write_text(text)
    with pytest.raises(PackedFolderError, match=r"config\.json builds no model"):
        load_packed(folder)


@pytest.mark.parametrize("text", ["[]", '{"max_new_tokens": "x"}', "{"])
def test_a_damaged_generation_config_is_named(folder, text):
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(PackedFolderError, match=r"generation_config\.json"):
        load_packed(folder)


def test_a_cognate_that_transformers_does_not_know_yet_is_told_what_to_import(tmp_path, monkeypatch):
    save_packed(packed("cognate"), tmp_path)
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, "cognate")
    with pytest.raises(PackedFolderError, match=r"config\.json builds no model \(.*import forgelib\.models"):
        load_packed(tmp_path)


def test_a_changed_config_of_the_same_layers_is_refused_by_its_seal(folder):
    change_config(folder, {"hidden_act": "gelu"}, sealed=True)
    with pytest.raises(PackedFolderError, match=r"config\.json is not the one .* config_sha256"):
        load_packed(folder)


def test_a_folder_from_before_there_was_a_seal_is_read(folder):
    change_config(folder, {})
    assert torch.equal(logits(load_packed(folder)), logits(packed()))


def test_a_folder_with_equal_scales_for_every_output_is_read(folder):
    tensors = load_file(folder / TERNARY)
    outputs = {name: layer.out_features for name, layer in packed().named_modules() if f"{name}.scales" in tensors}
    tensors |= {f"{name}.scales": tensors[f"{name}.scales"].repeat(n) for name, n in outputs.items()}
    save_file(tensors, folder / TERNARY)
    assert outputs and torch.equal(logits(load_packed(folder)), logits(packed()))
