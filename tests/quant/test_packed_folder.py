"""A packed folder gives back equal logits, or refuses: it never loads a half."""

import json

import pytest
import torch
from packed_models import build, logits
from safetensors.torch import load_file, save_file

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
    weights, outputs = sum(m.in_features * m.out_features for m in layers), sum(m.out_features for m in layers)
    header = 8 + int.from_bytes((folder / TERNARY).read_bytes()[:8], "little")
    assert (folder / TERNARY).stat().st_size - header <= weights / 5 + 4 * outputs + len(layers)
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
        *(half_scales, fewer_scales, no_scales, one_too_many),
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


OTHER_MODELS = [{"hidden_size": 128}, {"num_hidden_layers": 1}, {"model_type": "unheard-of"}]


@pytest.mark.parametrize("change", OTHER_MODELS, ids=str)
def test_a_config_of_another_model_is_refused(folder, change):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(PackedFolderError):
        load_packed(folder)
