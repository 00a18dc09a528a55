"""MuonGrokfast against torch's own optimizers, and the rules that trainers rely on."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from forgelib.core.state import flatten, unflatten
from forgelib.optim import MuGrokConfig, MuonGrokfast
from forgelib.optim.newton_schulz import BAND

PLAIN = {"grokfast_lambda": 0.0, "weight_decay": 0.1, "muon_lr": 0.02, "adamw_lr": 0.003}


class Net(nn.Module):
    """One of everything: embedding, matrices of two shapes, a 3-D kernel, norm, bias, a one-row matrix, a head."""

    def __init__(self, tied: bool = False):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up, self.down = nn.Linear(8, 24), nn.Linear(24, 8, bias=False)
        self.mix, self.conv = nn.Linear(8, 8, bias=False), nn.Conv1d(8, 8, 3, groups=8)
        self.norm, self.probe = nn.LayerNorm(8), nn.Linear(8, 1)
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def get_output_embeddings(self):
        return self.head

    def forward(self, ids):
        x = self.embed(ids)
        x = self.norm(x + self.down(torch.relu(self.up(x))) + self.mix(x))
        x = x + self.conv(x.transpose(1, 2))[..., : x.shape[1]].mean(-1, keepdim=True).transpose(1, 2)
        return self.head(x) + self.probe(x)


def seeded(tied=False, dtype=torch.float32):
    torch.manual_seed(0)
    return Net(tied).to(dtype)


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        ids = torch.randint(0, 11, (4, 6), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.roll(1, 1).flatten()).backward()
        optimizer.step()


def names(model, optimizer, group):
    wanted = {id(p) for g in optimizer.param_groups if g["name"] == group for p in g["params"]}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def test_each_parameter_goes_where_the_rule_says():
    model = seeded()
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate"))
    assert names(model, optimizer, "muon") == {"up.weight", "down.weight", "mix.weight"}
    assert names(model, optimizer, "adamw") == {"embed.weight", "head.weight", "conv.weight", "probe.weight"}
    assert names(model, optimizer, "adamw_no_decay") == {
        "up.bias", "conv.bias", "norm.weight", "norm.bias", "probe.bias"
    }  # fmt: skip
    decay = {g["name"]: g["weight_decay"] for g in optimizer.param_groups}
    assert decay == {"muon": 0.05, "adamw": 0.05, "adamw_no_decay": 0.0}


def test_a_tied_embedding_is_stepped_once_and_by_adamw():
    model = seeded(tied=True)
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate"))
    everything = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert len(everything) == len(set(everything)) == len(list(model.parameters()))
    assert "embed.weight" in names(model, optimizer, "adamw")
    train(model, optimizer, 3)
    assert float(optimizer.state[model.embed.weight]["step"]) == 3


def test_frozen_parameters_and_those_without_gradient_are_left_alone():
    model = seeded()
    model.mix.weight.requires_grad_(False)
    optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate"))
    before = copy.deepcopy(model.state_dict())
    model.down.weight.grad = torch.ones_like(model.down.weight)
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"down.weight"}


def test_without_grokfast_the_matrices_follow_torch_muon():
    """torch runs Newton-Schulz in bfloat16: two orthogonal factors inside the band differ by at most its width."""
    model = seeded()
    twin = copy.deepcopy(model)
    ours = MuonGrokfast(model, MuGrokConfig(**PLAIN))
    matrices, counterparts = ([m.up.weight, m.down.weight, m.mix.weight] for m in (model, twin))
    theirs = torch.optim.Muon(counterparts, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    for step in range(4):
        dice = torch.Generator().manual_seed(step)
        for p, q in zip(matrices, counterparts, strict=True):
            p.data.copy_(q.data)
            p.grad = torch.randn(p.shape, generator=dice)
            q.grad = p.grad.clone()
        before = [p.detach() * (1 - 0.02 * 0.1) for p in matrices]
        theirs.step()
        ours.step()
        for p, q, old in zip(matrices, counterparts, before, strict=True):
            scale = 0.02 * max(1.0, p.shape[0] / p.shape[1]) ** 0.5
            mine, other = (old - p.detach()) / scale, (old - q.detach()) / scale
            assert torch.linalg.matrix_norm(mine - other, 2).item() < BAND[1] - BAND[0]
            assert torch.nn.functional.cosine_similarity(mine.flatten(), other.flatten(), dim=0).item() > 0.98


@pytest.mark.parametrize("shape", [(6, 6), (4, 12), (12, 4)])
def test_the_matrices_follow_the_formulas_written_out_in_float64(shape):
    """Grokfast, Nesterov momentum, quintic of the singular values, decay, scale, a rate that changes."""
    model = nn.Linear(shape[1], shape[0], bias=False).double()
    optimizer = MuonGrokfast(
        model, MuGrokConfig(muon_lr=0.5, grokfast_lambda=0.7, grokfast_alpha=0.9, weight_decay=0.2)
    )
    w, slow, momentum = model.weight.detach().clone(), None, torch.zeros(shape, dtype=torch.float64)
    for step in range(6):
        g = torch.randn(shape, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = rate = 0.5 / (step + 1)
        model.weight.grad = g.clone()
        optimizer.step()
        slow = g if slow is None else 0.9 * slow + 0.1 * g
        filtered = g + 0.7 * slow
        momentum = 0.95 * momentum + 0.05 * filtered
        u, s, vt = torch.linalg.svd(0.05 * filtered + 0.95 * momentum, full_matrices=False)
        s = s / s.norm()
        for _ in range(5):
            s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
        w = (1 - rate * 0.2) * w - rate * max(1.0, shape[0] / shape[1]) ** 0.5 * (u * s @ vt)
        assert torch.allclose(model.weight, w, atol=1e-9)


def test_without_grokfast_the_rest_follows_torch_adamw():
    model = seeded(tied=True)
    twin, config = copy.deepcopy(model), MuGrokConfig(**PLAIN)
    ours = MuonGrokfast(model, config)
    counterpart = dict(zip(map(id, model.parameters()), twin.parameters(), strict=True))
    rest = [
        {"params": [counterpart[id(p)] for p in g["params"]], "weight_decay": g["weight_decay"]}
        for g in ours.param_groups
        if g["name"] != "muon"
    ]
    theirs = torch.optim.AdamW(rest, lr=0.003, betas=(0.9, 0.95), eps=1e-8)
    for step in range(20):
        dice = torch.Generator().manual_seed(step)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn(p.shape, generator=dice)
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for group in rest:
        for q in group["params"]:
            p = next(p for p in model.parameters() if counterpart[id(p)] is q)
            assert float((p - q).abs().max()) < 1e-6


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_step_goes_down_a_quadratic(sign):
    """Sign test on |W - T|^2 + |b - t|^2, first for the matrix (Muon), then for the bias (AdamW)."""
    model = nn.Linear(6, 4)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    optimizer = MuonGrokfast(model, MuGrokConfig(muon_lr=0.02, weight_decay=0.0))
    target, distances = sign * torch.linspace(0.5, 1.5, 24).view(4, 6), []
    for _ in range(300):
        parts = (model.weight - target).square().sum(), (model.bias - sign).square().sum()
        distances.append([float(part.detach()) for part in parts])
        optimizer.zero_grad()
        sum(parts).backward()
        optimizer.step()
    for curve in zip(*distances, strict=True):
        assert all(later < earlier for earlier, later in itertools.pairwise(curve[:20]))
        assert curve[-1] < 0.05 * curve[0]


def test_the_update_of_a_tall_matrix_is_scaled_by_the_root_of_its_shape():
    for rows, columns in ((8, 32), (32, 8)):
        model = nn.Linear(columns, rows, bias=False)
        optimizer = MuonGrokfast(model, MuGrokConfig(muon_lr=0.01, weight_decay=0.0))
        before = model.weight.detach().clone()
        model.weight.grad = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))
        optimizer.step()
        values = torch.linalg.svdvals((before - model.weight) / 0.01) / max(1.0, rows / columns) ** 0.5
        assert BAND[0] - 1e-3 <= float(values.min()) and float(values.max()) <= BAND[1] + 1e-3


def test_weight_decay_is_decoupled_and_spares_norms_and_biases():
    model = seeded()
    before = copy.deepcopy(model.state_dict())
    optimizer = MuonGrokfast(model, MuGrokConfig(muon_lr=0.1, adamw_lr=0.2, weight_decay=0.5))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kept = {"muon": 1 - 0.1 * 0.5, "adamw": 1 - 0.2 * 0.5, "adamw_no_decay": 1.0}
    for group, factor in kept.items():
        for name in names(model, optimizer, group):
            assert torch.allclose(model.state_dict()[name], factor * before[name], rtol=1e-6), name


def test_a_saved_optimizer_continues_to_the_bit():
    whole = seeded(tied=True)
    optimizer = MuonGrokfast(whole, MuGrokConfig.preset("cognate"))
    train(whole, optimizer, 4)
    half = copy.deepcopy(whole)
    tensors, meta = flatten(optimizer.state_dict())
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    train(whole, optimizer, 4, start=4)
    resumed = MuonGrokfast(half, MuGrokConfig.preset("cognate"))
    resumed.load_state_dict(unflatten(tensors, meta))
    train(half, resumed, 4, start=4)
    for (name, p), q in zip(whole.named_parameters(), half.parameters(), strict=True):
        assert torch.equal(p, q), name


class Conv1DAttention(nn.Module):
    """What the optimizer has to know of a model besides its parameters: matrices [in, out], and heads to clip."""

    def __init__(self):
        super().__init__()
        self.embed, self.c_attn, self.head = nn.Embedding(11, 8), Conv1D(24, 8), nn.Linear(8, 11)
        self.max_logits = None

    def forward(self, ids):
        q, k, v = self.c_attn(self.embed(ids)).chunk(3, -1)
        logits = q @ k.mT
        self.max_logits = logits.detach().amax().reshape(1)
        return self.head(logits.softmax(-1) @ v)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_model_and_optimizer_goes_on_alike(copied):
    torch.manual_seed(0)
    model = Conv1DAttention()
    optimizer = MuonGrokfast(model, MuGrokConfig(muon_lr=0.1, qk_clip_threshold=0.01))
    train(model, optimizer, 1)
    other, its = copied((model, optimizer))
    train(model, optimizer, 3, start=1)
    train(other, its, 3, start=1)
    assert its.last_clip == optimizer.last_clip == {"": [0]}
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert p is not q and torch.equal(p, q), name


def test_a_scheduler_scales_every_group():
    model = seeded()
    optimizer = MuonGrokfast(model, MuGrokConfig(muon_lr=0.01, adamw_lr=0.002))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step == 0 else 0.5)
    before = copy.deepcopy(model.state_dict())
    train(model, optimizer, 1)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for group, rate in zip(optimizer.param_groups, (0.005, 0.001, 0.001), strict=True):
        group["lr"] = rate
    twin = seeded()
    fresh = MuonGrokfast(twin, MuGrokConfig(muon_lr=0.005, adamw_lr=0.001))
    fresh.load_state_dict({**optimizer.state_dict(), "param_groups": fresh.state_dict()["param_groups"]})
    train(model, optimizer, 1, start=1)
    train(twin, fresh, 1, start=1)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_closure_is_called_once_with_gradients_on_and_its_loss_returned():
    model, calls = nn.Linear(3, 2), []
    optimizer = MuonGrokfast(model, MuGrokConfig())

    def closure():
        optimizer.zero_grad()
        loss = model(torch.ones(1, 3)).square().sum()
        loss.backward()
        calls.append(loss.item())
        return loss

    before = model.weight.detach().clone()
    assert optimizer.step(closure).item() == calls[0] and len(calls) == 1
    assert not torch.equal(before, model.weight)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda m: m.requires_grad_(False), "no parameter that requires a gradient"),
        (lambda m: m.bfloat16(), r"embed.weight is torch.bfloat16: MuonGrokfast needs float32 weights"),
        (lambda m: setattr(m, "embed", nn.Embedding(11, 8, sparse=True)), "embed gives sparse gradients"),
        (lambda m: setattr(m.norm, "max_logits", None), r"norm \(LayerNorm\) reports attention logits but has neither"),
    ],
)
def test_models_it_cannot_train_are_refused_by_name(spoil, message):
    model = seeded()
    spoil(model)
    with pytest.raises(ValueError, match=message):
        MuonGrokfast(model, MuGrokConfig())


def test_what_is_no_model_or_no_configuration_is_refused():
    with pytest.raises(TypeError, match="takes the model itself, not list"):
        MuonGrokfast(list(seeded().parameters()), MuGrokConfig())
    with pytest.raises(TypeError, match="config is str: give MuGrokConfig"):
        MuonGrokfast(seeded(), "cognate")


def test_a_large_table_stepped_in_row_blocks_moves_as_one_stepped_whole(monkeypatch):
    results = []
    for size in (2**30, 64):
        monkeypatch.setattr("forgelib.optim.tiles.TILE_BYTES", size)
        model = seeded(tied=True)
        train(model, MuonGrokfast(model, MuGrokConfig.preset("cognate")), 4)
        results.append(model.state_dict())
    for name, value in results[0].items():
        assert torch.allclose(value, results[1][name], atol=1e-6), name


def test_matrices_stored_the_other_way_round_are_scaled_by_outputs_over_inputs():
    """GPT-2's Conv1D [inputs, outputs] takes the same step as the nn.Linear that it is the transpose of."""
    conv, linear = Conv1D(32, 8), nn.Linear(8, 32)
    with torch.no_grad():
        linear.weight.copy_(conv.weight.T)
    for module in (conv, linear):
        g = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
        module.weight.grad = (g.T if module is conv else g).contiguous()
        MuonGrokfast(module, MuGrokConfig(muon_lr=0.1)).step()
    assert torch.allclose(conv.weight.T, linear.weight, atol=5e-3)
