"""QK-Clip acts on weights: what the next forward pass measures for a clipped head is the threshold itself."""

import copy
import math

import pytest
import torch
from torch import nn

from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.optim import MuGrokConfig, MuonGrokfast
from forgelib.optim.qk_clip import clip_heads, clippable_modules

TAU = 5.0


class Attention(nn.Module):
    """Scaled dot-product attention with query and key heads of its own count, linear in q and in k."""

    def __init__(self, heads: int, key_heads: int, bias: bool, width: int = 4):
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.width = heads, key_heads, width
        self.q_proj = nn.Linear(6, heads * width, bias=bias)
        self.k_proj = nn.Linear(6, key_heads * width, bias=bias)
        self.max_logits = None

    def logits(self, x):
        q = self.q_proj(x).view(len(x), self.num_heads, self.width)
        k = self.k_proj(x).view(len(x), self.num_key_value_heads, self.width)
        k = k.repeat_interleave(self.num_heads // self.num_key_value_heads, dim=1)
        return torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(self.width)

    def largest(self, x):
        return self.logits(x).flatten(1).amax(1)


def attention(heads=4, key_heads=4, bias=False, hot=(1, 3)):
    torch.manual_seed(0)
    module, x = Attention(heads, key_heads, bias).double(), torch.randn(9, 6, dtype=torch.float64)
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(0.5)
        for head in hot:
            rows = slice(head * module.width, (head + 1) * module.width)
            for p in module.q_proj.parameters():
                p[rows] *= 200.0 + head
    return module, x


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_a_clipped_head_then_measures_the_threshold_exactly(key_heads, bias):
    module, x = attention(key_heads=key_heads, bias=bias)
    before = module.largest(x)
    assert (before > TAU).tolist() == [False, True, False, True]
    module.max_logits = before
    assert clip_heads({"a": module}, TAU) == {"a": [1, 3]}
    after = module.largest(x)
    assert torch.allclose(after[[1, 3]], torch.full((2,), TAU, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(after[[0, 2]], before[[0, 2]], rtol=1e-12), "the others' logits stay, shared keys or not"
    assert module.max_logits is None


def test_query_and_key_of_a_head_share_the_clip_evenly():
    module, x = attention()
    old = copy.deepcopy(module)
    module.max_logits = module.largest(x)
    expected = (TAU / module.max_logits[1]).sqrt()
    clip_heads({"a": module}, TAU)
    for name in ("q_proj", "k_proj"):
        ratio = getattr(module, name).weight[4:8] / getattr(old, name).weight[4:8]
        assert torch.allclose(ratio, expected.expand_as(ratio), rtol=1e-12)


def test_heads_below_the_threshold_keep_every_bit():
    module, x = attention(bias=True)
    old = copy.deepcopy(module)
    module.max_logits = module.largest(x)
    clip_heads({"a": module}, TAU)
    for name in ("q_proj", "k_proj"):
        for p, q in zip(getattr(module, name).parameters(), getattr(old, name).parameters(), strict=True):
            assert torch.equal(p[0:4], q[0:4]) and torch.equal(p[8:12], q[8:12])
            assert not torch.equal(p[4:8], q[4:8])


def test_modules_that_did_not_run_or_stay_low_are_untouched():
    module, _ = attention()
    old = copy.deepcopy(module)
    assert clip_heads({"a": module}, TAU) == {}
    module.max_logits = torch.full((4,), TAU, dtype=torch.float64)
    assert clip_heads({"a": module}, TAU) == {}
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), old.parameters(), strict=True))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_logits_that_are_not_finite_are_an_error_with_the_module_and_head(bad):
    """tau / infinity would silence the head for good and hide the cause."""
    module, _ = attention()
    old = copy.deepcopy(module)
    module.max_logits = torch.tensor([1.0, bad, 2.0, 3.0], dtype=torch.float64)
    with pytest.raises(FloatingPointError, match=r"blocks\.3\.attention.*head.*1"):
        clip_heads({"blocks.3.attention": module}, TAU)
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), old.parameters(), strict=True))


def tiny_cognate():
    torch.manual_seed(0)
    config = CognateConfig(vocab_size=32, d_model=32, n_layers=2, n_heads=4, d_ff=48, window=8, memory_chunk=8)
    return CognateForCausalLM(config)


def measured(model, ids):
    """Each attention module's largest logits in a training forward pass, by name."""
    model.train()
    modules = clippable_modules(model)
    for module in modules.values():
        module.max_logits = None
    with torch.no_grad():
        model(input_ids=ids, labels=ids)
    return {name: module.max_logits.clone() for name, module in modules.items()}


def test_a_real_model_with_blown_up_queries_is_brought_back_by_the_step():
    model, ids = tiny_cognate(), torch.randint(0, 32, (2, 24), generator=torch.Generator().manual_seed(1))
    modules = clippable_modules(model)
    assert len(modules) == 4, "two blocks and two recursion layers"
    with torch.no_grad():
        for module in modules.values():
            module.q_proj.weight.mul_(3e4)
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate", muon_lr=1e-9, weight_decay=0.0))
    hottest = {name: float(largest.max()) for name, largest in measured(model, ids).items()}
    assert min(hottest.values()) > 30
    for _ in range(6):  # a calmer layer changes what the next one sees, so the later ones settle in turn
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        assert all(module.max_logits is None for module in modules.values())
    assert all(float(largest.max()) <= 30 * (1 + 1e-4) for largest in measured(model, ids).values())


def test_the_step_reports_what_it_clipped_and_evaluation_measures_nothing():
    model, ids = tiny_cognate(), torch.randint(0, 32, (1, 16), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.model.blocks[1].attention.q_proj.weight[8:16] *= 3e4
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate", muon_lr=1e-9))
    model.eval()(input_ids=ids)
    assert all(module.max_logits is None for module in clippable_modules(model).values())
    model.train()(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert optimizer.last_clip == {"model.blocks.1.attention": [1]}
    optimizer.step()
    assert optimizer.last_clip == {}
