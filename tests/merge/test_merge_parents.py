"""Parents that do not fit together are refused before any work, in words that name what, where and what to do."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from small_weights import weights
from transformers import LlamaConfig, LlamaForCausalLM

from forgelib.merge import LazyWeights, MergeRefused, check_parents, linear

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}


def llama(seed=0, **changes):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes}))


@pytest.fixture
def folders(tmp_path):
    for i in range(3):
        llama(i).save_pretrained(tmp_path / f"{i}")
        tokens = [{"id": 0, "content": "<pad>", "special": True}]
        (tmp_path / f"{i}" / "tokenizer.json").write_text(
            json.dumps({"model": {"vocab": {"a": 1}}, "added_tokens": tokens})
        )
    return [tmp_path / f"{i}" for i in range(3)]


def test_fitting_parents_come_back_ready_to_merge(folders):
    *parents, base = check_parents(folders[:2], base=str(folders[2]))
    assert isinstance(base, LazyWeights) and set(linear(parents)) == set(base)
    models = [llama(i) for i in range(2)]
    child = linear(check_parents(models))
    assert child["lm_head.weight"] is child["model.embed_tokens.weight"]
    models[0].load_state_dict(child)
    assert len(check_parents([folders[0] / "model.safetensors", weights_of(folders[1]), folders[2]])) == 3


def weights_of(folder):
    return {name: tensor for name, tensor in LazyWeights([folder / "model.safetensors"]).items()}


def test_a_model_in_memory_fits_its_own_folder_when_untied(tmp_path):
    model = llama(tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "a")
    check_parents([tmp_path / "a", model])


@pytest.mark.parametrize("parents", [[], [llama()]], ids=["none", "one"])
def test_fewer_than_two(parents):
    with pytest.raises(MergeRefused, match=f"{len(parents)} parents: a merge needs at least two"):
        check_parents(parents)


@pytest.mark.parametrize(
    "field, value",
    [
        ("vocab_size", 65),
        ("hidden_size", 32),
        ("num_hidden_layers", 3),
        ("num_attention_heads", 4),
        ("eos_token_id", 3),
        ("rms_norm_eps", 1e-3),
        ("tie_word_embeddings", False),
    ],
)
def test_another_configuration(folders, field, value):
    other = llama(**{field: value})
    with pytest.raises(MergeRefused, match=f"{field} is .* in .*/0 and {value} in parent 1"):
        check_parents([folders[0], other])
    with pytest.raises(MergeRefused, match=f"{field} is .* in the trunk"):
        check_parents([folders[0], folders[1]], base=other)


def test_another_architecture_is_named_first_and_dials_may_differ(folders):
    edit(folders[1] / "config.json", lambda c: c.update(model_type="mistral", vocab_size=65, rms_norm_eps=1.0))
    with pytest.raises(MergeRefused, match=r"model_type is 'llama' in .*/0 and 'mistral' in .*/1"):
        check_parents(folders)
    edit(folders[1] / "config.json", lambda c: c.update(model_type="llama", vocab_size=64))
    with pytest.raises(MergeRefused, match="rms_norm_eps"):
        check_parents(folders)
    check_parents(folders, may_differ=["rms_norm_eps"])


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "change, what",
    [
        (lambda t: t["added_tokens"][0].update(content="<unk>"), "special tokens"),
        (lambda t: t["added_tokens"].append({"id": 9, "content": "<x>"}), "special tokens"),
        (lambda t: t["model"]["vocab"].update(b=2), "vocabulary"),
    ],
)
def test_another_tokenizer(folders, change, what):
    edit(folders[2] / "tokenizer.json", change)
    with pytest.raises(MergeRefused, match=f"tokenizer of .*/2 has another {what} than that of .*/0"):
        check_parents(folders)


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda w: w.pop("model.norm.weight"), r"model\.norm\.weight is in parent 0 and not in small"),
        (lambda w: w.update(extra=torch.ones(1)), "extra is in small and not in parent 0"),
        (lambda w: w.update({"model.norm.weight": torch.ones(9)}), r"is \[8\] float32 in parent 0 and \[9\] float32"),
        (lambda w: w.update({"model.norm.weight": torch.ones(8).half()}), r"\[8\] float32 .* \[8\] float16 in small"),
        (lambda w: w["model.norm.weight"].fill_(float("nan")), r"model\.norm\.weight in small holds NaN or infinity"),
        (lambda w: w["model.scale"].fill_(float("inf")), r"model\.scale in small holds NaN or infinity"),
        (lambda w: w.update(steps=torch.tensor(4)), r"steps in small differs from parent 0"),
    ],
)
def test_other_tensors(change, text, tmp_path):
    first, other = ({**weights(seed), "steps": torch.tensor(3)} for seed in (1, 2))
    if "steps" in text:
        change(other)
    else:
        del first["steps"], other["steps"]
        change(other)
    with pytest.raises(MergeRefused, match=text):
        check_parents([first, other], labels=["parent 0", "small"])
    save_file(other, tmp_path / "small.safetensors")
    with pytest.raises(MergeRefused, match=text.replace("in small", r"in .*small\.safetensors")):
        check_parents([first, tmp_path / "small.safetensors"])


def test_weights_tied_in_one_only():
    tied = weights(1)
    tied["lm_head.weight"] = tied["model.embed_tokens.weight"]
    loose = {name: tensor.clone() for name, tensor in tied.items()}
    with pytest.raises(MergeRefused, match=r"lm_head\.weight: tied in one model, not in another"):
        check_parents([tied, loose])


def test_sums_that_overflow_are_not_taken_for_infinity():
    large = {"w": torch.full((4,), 3e38)}
    check_parents([large, large])


def test_missing_and_damaged_files(folders):
    with pytest.raises(MergeRefused, match="nowhere is missing: there is no such model"):
        check_parents([folders[0], folders[0].parent / "nowhere"])
    (folders[1] / "config.json").write_text("{")
    with pytest.raises(MergeRefused, match=r"1/config\.json is not JSON"):
        check_parents(folders)
    (folders[1] / "config.json").unlink()
    with pytest.raises(MergeRefused, match=r"1/config\.json is missing"):
        check_parents(folders)
    shutil.copy(folders[0] / "config.json", folders[1])
    file = folders[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(MergeRefused, match=r"1/model\.safetensors is damaged or cut short"):
        check_parents(folders)
    file.unlink()
    with pytest.raises(MergeRefused, match=r"1 holds no model\.safetensors"):
        check_parents(folders)
