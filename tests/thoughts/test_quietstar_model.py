"""The wrapped model: at step 0 exactly its base, later moved by its thoughts, and the same after it was stored."""

import json

import pytest
import torch
from tiny_thinkers import FAMILIES, MASK, thinker, three_texts
from transformers import AutoModelForCausalLM, GemmaConfig, GraniteConfig

from forgelib.thoughts import QuietSTaRModel, ThoughtConfig

CONFIG = ThoughtConfig(n_thoughts=2, length=5, start=(5,), end=7, top_p=0.8)


def wrapped(family, moved=False):
    torch.manual_seed(1)
    model = QuietSTaRModel(thinker(family), CONFIG).eval()
    if moved:
        torch.nn.init.normal_(model.mixing.last.weight)
    return model


def think(model, ids, **options):
    return model.think(ids, MASK, generator=torch.Generator().manual_seed(0), **options)


def labels_of(ids):
    return ids.masked_fill(MASK == 0, -100)


@pytest.mark.parametrize("family", FAMILIES)
def test_at_step_0_the_mixed_model_is_exactly_its_base(family):
    model, ids = wrapped(family), three_texts()
    options = {} if family == "cognate" else {"position_ids": (MASK.cumsum(1) - 1).clamp_min(0)}
    base = model.base_model(input_ids=ids, attention_mask=MASK, labels=labels_of(ids), use_cache=False, **options)
    plain = model(ids, MASK, labels_of(ids))
    mixed = model(ids, MASK, labels_of(ids), thoughts=think(model, ids))
    assert torch.equal(mixed.logits, base.logits) and torch.equal(mixed.base_logits, base.logits)
    assert torch.equal(plain.logits, base.logits) and torch.equal(plain.loss, base.loss)
    torch.testing.assert_close(mixed.loss, base.loss, atol=1e-6, rtol=0)  # the same logits, summed in another order
    assert torch.equal(mixed.gate > 0, MASK.bool())


@pytest.mark.parametrize("family", ["llama", "cognate"])
def test_later_thoughts_move_their_own_positions_only(family):
    model, ids = wrapped(family, moved=True), three_texts()
    positions = torch.tensor([[2, 6], [5, -1], [1, 4]])
    mixed = model(ids, MASK, thoughts=think(model, ids, positions=positions))
    changed = (mixed.logits != mixed.base_logits).any(-1)
    expected = torch.zeros_like(MASK).scatter(1, positions.clamp_min(0), (positions >= 0).long()).bool()
    expected[1, 5] = True
    assert torch.equal(changed, expected) and mixed.loss is None


@pytest.mark.parametrize("family", ["llama", "cognate"])
def test_the_loss_reaches_the_thoughts_and_the_head(family):
    model, ids = wrapped(family, moved=True), three_texts()
    thoughts = think(model, ids)
    mixed = model(ids, MASK, labels_of(ids), thoughts=thoughts)
    torch.testing.assert_close(mixed.log_probs, thoughts.log_probs, atol=1e-4, rtol=0)
    (mixed.loss - mixed.log_probs.mean()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in missing if "halting" not in name] == []
    with pytest.raises(ValueError, match="no token to predict"):
        model(ids, MASK, torch.full_like(ids, -100), thoughts=thoughts)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "cognate"])
def test_stored_and_read_again_it_is_the_same(family, tmp_path):
    model, ids = wrapped(family, moved=True), three_texts()
    model.save_pretrained(tmp_path / "m")
    again = QuietSTaRModel.from_pretrained(tmp_path / "m")
    assert again.config == model.config and not again.training
    one, two = think(model, ids), think(again, ids)
    assert torch.equal(one.tokens, two.tokens)
    with torch.no_grad():
        assert torch.equal(model(ids, MASK, thoughts=one).logits, again(ids, MASK, thoughts=two).logits)
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "m" / "base").eval()
        assert torch.equal(base(input_ids=ids, use_cache=False).logits, model(ids).logits)
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"base", "mixing.safetensors", "quietstar.json"}
    assert json.loads((tmp_path / "m" / "quietstar.json").read_text())["n_heads"] == 8


def test_a_folder_without_one_is_named():
    with pytest.raises(FileNotFoundError, match="is no QuietSTaRModel: it has no quietstar"):
        QuietSTaRModel.from_pretrained("nowhere")


def test_logits_that_are_not_the_heads_alone_are_refused():
    sizes = {"vocab_size": 37, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    plain = AutoModelForCausalLM.from_config(GemmaConfig(**sizes, **heads))
    assert QuietSTaRModel(plain).mixing.width == 32
    sizes.pop("head_dim")
    scaled = AutoModelForCausalLM.from_config(GraniteConfig(logits_scaling=2.0, **sizes, **heads))
    with pytest.raises(ValueError, match="scaled or capped afterwards"):
        QuietSTaRModel(scaled)
