"""Foreign Hugging Face models report their largest attention logits through the public interface, and are clipped."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from forgelib.optim import MuGrokConfig, MuonGrokfast, track_attention_logits
from forgelib.optim.attention_logits import largest_logits

SIZES = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE = {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}


def llama(implementation="sdpa"):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **MORE, attn_implementation=implementation)).train()


def batch(padded=False):
    ids = torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :5] = 0
    return {"input_ids": ids, "attention_mask": mask}


def logits_by_hand(model, inputs):
    """Per layer [H]: q . k / sqrt(d) of rotated queries and repeated keys, over the pairs that a token may see."""
    seen_states = {}
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs, i=i: seen_states.update({i: kwargs}),
            with_kwargs=True,
        )
    model(**inputs)
    results = []
    length = inputs["input_ids"].shape[1]
    visible = torch.ones(length, length, dtype=torch.bool).tril() & inputs["attention_mask"][:, None, None].bool()
    for i, layer in enumerate(model.model.layers):
        kwargs, states = seen_states[i], seen_states[i]["hidden_states"]
        q = layer.self_attn.q_proj(states).view(3, length, 4, 8).transpose(1, 2)
        k = layer.self_attn.k_proj(states).view(3, length, 2, 8).transpose(1, 2)
        q, k = apply_rotary_pos_emb(q, k, *kwargs["position_embeddings"])
        logits = q @ k.repeat_interleave(2, dim=1).mT / 8**0.5
        results.append(logits.masked_fill(~visible, -torch.inf).amax(dim=(0, 2, 3)).detach())
    return results


@pytest.mark.parametrize("padded", [False, True])
def test_llama_reports_what_is_computed_by_hand_and_its_outputs_stay(padded):
    plain, model = llama(), llama()
    tracking = track_attention_logits(model)
    assert tracking.tracked == ["model.layers.0.self_attn", "model.layers.1.self_attn"] and tracking.left_out == []
    inputs = batch(padded)
    kept = inputs["attention_mask"].bool()
    assert torch.equal(model(**inputs).logits[kept], plain(**inputs).logits[kept])
    for name, expected in zip(tracking.tracked, logits_by_hand(plain, inputs), strict=True):
        assert torch.allclose(model.get_submodule(name).max_logits, expected, atol=1e-5)


def test_maxima_gather_over_passes_and_evaluation_reports_none():
    model = llama()
    name = track_attention_logits(model).tracked[0]
    module, passes = model.get_submodule(name), []
    model.eval()(**batch())
    assert module.max_logits is None
    model.train()
    for shift in range(2):
        module.max_logits = None
        model(input_ids=(batch()["input_ids"] + shift) % 50)
        passes.append(module.max_logits)
    module.max_logits = None
    for shift in range(2):
        model(input_ids=(batch()["input_ids"] + shift) % 50)
    assert torch.equal(module.max_logits, torch.maximum(*passes))


def test_hot_heads_of_llama_with_shared_keys_are_brought_back():
    model = llama()
    names = track_attention_logits(model).tracked
    modules = [model.get_submodule(name) for name in names]
    with torch.no_grad():
        for module in modules:
            module.q_proj.weight[8:16] *= 3e4
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate", muon_lr=1e-9, weight_decay=0.0))
    inputs, clipped = batch(), []
    for _ in range(3):
        optimizer.zero_grad()
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        optimizer.step()
        clipped.append(optimizer.last_clip)
    assert clipped[0] == {name: [1] for name in names}
    model(**inputs)
    assert all(float(module.max_logits.max()) <= 30 * (1 + 1e-4) for module in modules)


def test_gpt2_takes_part_by_its_fused_projection():
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**sizes, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)).train()
    (name,) = track_attention_logits(model).tracked
    attention = model.get_submodule(name)
    with torch.no_grad():
        attention.c_attn.weight[:, 8:16] *= 3e3
        values = attention.c_attn.weight[:, 64:].clone()
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate", muon_lr=1e-9, weight_decay=0.0))
    model(input_ids=batch()["input_ids"], labels=batch()["input_ids"]).loss.backward()
    assert float(attention.max_logits[1]) > 30
    optimizer.step()
    assert optimizer.last_clip == {name: [1]}
    assert torch.allclose(attention.c_attn.weight[:, 64:], values, atol=1e-6)
    model(input_ids=batch()["input_ids"])
    assert float(attention.max_logits[1]) == pytest.approx(30, rel=1e-3)


@pytest.mark.parametrize(
    "model",
    [
        lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, **MORE, head_dim=8)),
        lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, intermediate_size=48, max_position_embeddings=64)),
    ],
    ids=["queries and keys are normalised", "projections are fused otherwise"],
)
def test_attention_that_cannot_be_clipped_is_left_out_by_name_and_still_trains(model):
    model = model().train()
    tracking = track_attention_logits(model)
    assert tracking.tracked == [] and len(tracking.left_out) == 2
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate"))
    model(input_ids=batch()["input_ids"], labels=batch()["input_ids"]).loss.backward()
    optimizer.step()
    assert optimizer.last_clip == {}


def test_models_without_attention_modules_are_refused():
    torch.manual_seed(0)
    model = llama()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ValueError, match="no submodule whose class is named"):
        track_attention_logits(model)


def test_blocks_of_queries_give_the_same_maxima(monkeypatch):
    dice = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, 9, 8, generator=dice), torch.randn(2, 2, 9, 8, generator=dice)
    whole = largest_logits(q, k, None, None, True)
    monkeypatch.setattr("forgelib.optim.attention_logits.LOGITS_AT_ONCE", 2 * 4 * 9 * 2)
    assert torch.allclose(largest_logits(q, k, None, None, True), whole)


def test_the_models_own_scaling_and_an_additive_mask_count():
    dice = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 2, 5, 8, generator=dice), torch.randn(1, 2, 5, 8, generator=dice)
    seen = torch.rand(1, 1, 5, 5, generator=dice) > 0.4
    added = torch.zeros(1, 1, 5, 5).masked_fill(~seen, torch.finfo(torch.float32).min)
    by_hand = (0.7 * q @ k.mT).masked_fill(~seen, -torch.inf).amax(dim=(0, 2, 3))
    for mask in (seen, added):
        assert torch.allclose(largest_logits(q, k, mask, 0.7, False), by_hand)
