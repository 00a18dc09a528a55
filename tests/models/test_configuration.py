"""Sizes, refusals, and the round trip through a folder."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from forgelib.models import CognateConfig, CognateForCausalLM, CognateModel
from forgelib.models.memory import NeuralMemory

SMOKE = {"vocab_size": 1024, "d_model": 64, "d_ff": 172, "n_layers": 2, "n_heads": 2, "window": 16}


def size_of(config: CognateConfig) -> int:
    with torch.device("meta"):
        return CognateForCausalLM(config).num_parameters()


def test_sizes_of_the_profiles():
    assert 0.1e6 < size_of(CognateConfig(**SMOKE)) < 0.35e6
    assert 1e6 < size_of(CognateConfig()) < 3e6
    full = CognateConfig.full()
    assert full.vocab_size == 50_257 and full.n_layers == 8
    assert 22.5e6 <= size_of(full) <= 27.5e6
    assert 22.5e6 <= size_of(CognateConfig.full(memory_layers=[1, 3, 5, 7])) <= 27.5e6


@pytest.mark.parametrize(
    "field, value",
    [
        ("d_model", 30),
        ("d_model", 20),
        ("d_model", 0),
        ("n_heads", 0),
        ("n_layers", 0),
        ("vocab_size", 0),
        ("d_ff", 0),
        ("max_cycles", 0),
        ("max_cycles", 7),
        ("n_micro_steps", 0),
        ("window", 0),
        ("memory_chunk", 0),
        ("conv_kernel", 0),
        ("ltm_tokens", 0),
        ("ltm_tokens", 1),
        ("act_threshold", 0.0),
        ("act_threshold", 1.0),
        ("recursion_layers", 0),
        ("memory_layers", [4]),
        ("memory_layers", [-1]),
        ("rope_theta", 0.0),
    ],
)
def test_impossible_sizes_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"CognateConfig\.{field} = .*must be"):
        CognateConfig(**{"d_model": 128, "n_heads": 4, field: value})


def test_a_saved_model_comes_back_bit_for_bit(tiny, text, tmp_path):
    model, ids = tiny(seed=3, act_threshold=0.6), text(2, 12)
    model.train()(input_ids=ids, labels=ids)  # fills the running accuracies, which are saved too
    model.eval().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "cognate"
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(again) is CognateForCausalLM and type(AutoConfig.from_pretrained(tmp_path)) is CognateConfig
    assert again.config.to_dict() | {"_name_or_path": ""} == model.config.to_dict() | {
        "_name_or_path": "",
        "architectures": ["CognateForCausalLM"],
        "dtype": again.config.to_dict()["dtype"],
    }
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert (after["model.halting.step_accuracy"][:3] >= 0).all()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)


def test_tied_weights_are_stored_once_and_stay_tied(tiny, tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir() if "model" in p.name) == ["model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        names = set(stored.keys())
        elements = sum(stored.get_tensor(name).numel() for name in names)
    assert ("lm_head.weight" in names) + ("model.embed_tokens.weight" in names) == 1
    assert elements == sum(p.numel() for p in model.parameters()) + 6
    again = CognateForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_the_backbone_alone_loads_from_the_same_folder(tiny, text, tmp_path):
    model, ids = tiny(), text(1, 9)
    model.save_pretrained(tmp_path)
    backbone = AutoModel.from_pretrained(tmp_path).eval()
    assert type(backbone) is CognateModel
    with torch.no_grad():
        states = backbone(input_ids=ids).last_hidden_state
        torch.testing.assert_close(model.lm_head(states), model(input_ids=ids).logits)


def test_memory_layers_name_the_blocks_that_have_a_memory(tiny, text):
    model = tiny(n_layers=3, memory_layers=[1])
    assert [isinstance(block.memory, NeuralMemory) for block in model.model.blocks] == [False, True, False]
    assert model(input_ids=text(1, 5)).memory_share.shape == (1,)
    none = tiny(memory_layers=[])(input_ids=text(1, 5))
    assert none.gate_entropy is None and none.memory_share is None


def test_initial_gates_write_gently():
    memory = CognateForCausalLM(CognateConfig(**SMOKE)).model.blocks[0].memory
    with torch.no_grad():
        writes, _ = memory.writes(torch.zeros(1, 4, 64), None, None)
    assert writes.eta.mean() == pytest.approx(0.13, abs=0.02) and writes.theta.mean() == pytest.approx(0.49, abs=0.02)
    assert 0.99 < writes.decay.mean() < 0.995


def test_the_vocabulary_can_grow_and_stays_tied(tiny, text):
    model, ids = tiny(), text(1, 9)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        model.resize_token_embeddings(49)
        after = model(input_ids=ids).logits
    assert after.shape[-1] == 49 and model.lm_head.weight is model.model.embed_tokens.weight
    torch.testing.assert_close(after[..., :37], before)
