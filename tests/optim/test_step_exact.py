"""The step to the last digits: torch's own optimizers and the papers' formulas in float64, whatever the tiling."""

import copy

import pytest
import torch
from torch import nn

from forgelib.optim import MuGrokConfig, MuonGrokfast, newton_schulz, tiles

SHAPES = {"square": (24, 24), "tall": (48, 16), "wide": (16, 56), "nearly square": (24, 32)}


class Model(nn.Module):
    """Two matrices of each shape, a table, a vector."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.matrices = nn.ModuleList(
            nn.Linear(columns, rows, bias=False, dtype=dtype) for rows, columns in SHAPES.values() for _ in range(2)
        )
        self.table, self.norm = nn.Embedding(40, 24, dtype=dtype), nn.LayerNorm(24, dtype=dtype)


def set_gradients(model, seed):
    dice = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=dice, dtype=torch.float64).to(p.dtype)


def quintic(g):
    x = g / g.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def test_ten_steps_follow_the_formulas_in_float64():
    """Grokfast, Nesterov momentum, decay, orthogonal factor and AdamW written out for one parameter at a time."""
    model = Model()
    config = MuGrokConfig(muon_lr=0.02, adamw_lr=0.003, grokfast_lambda=0.7, grokfast_alpha=0.9, weight_decay=0.1)
    optimizer = MuonGrokfast(model, config)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    memory = {name: {"m": torch.zeros_like(p), "v": torch.zeros_like(p)} for name, p in expected.items()}
    for t in range(1, 11):
        set_gradients(model, t)
        for name, p in model.named_parameters():
            s, w = memory[name], expected[name]
            s["h"] = 0.9 * s.get("h", p.grad) + 0.1 * p.grad
            g = p.grad + 0.7 * s["h"]
            if "matrices" in name:
                s["m"] = 0.95 * s["m"] + 0.05 * g
                rows, columns = w.shape
                update = quintic(0.05 * g + 0.95 * s["m"])
                expected[name] = (1 - 0.02 * 0.1) * w - 0.02 * max(1, rows / columns) ** 0.5 * update
            else:
                s["m"], s["v"] = 0.9 * s["m"] + 0.1 * g, 0.95 * s["v"] + 0.05 * g * g
                direction = (s["m"] / (1 - 0.9**t)) / ((s["v"] / (1 - 0.95**t)).sqrt() + 1e-8)
                expected[name] = w * (1 - 0.003 * 0.1 * (w.dim() > 1)) - 0.003 * direction
        optimizer.step()
    for name, p in model.named_parameters():
        assert torch.allclose(p, expected[name], rtol=1e-9, atol=1e-11), name


def test_without_grokfast_ten_steps_equal_torch_muon(monkeypatch):
    """torch.optim.Muon casts to bfloat16; with that cast taken away on both sides the weights agree to rounding."""
    model = Model(torch.float32)
    twin = copy.deepcopy(model)
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    monkeypatch.setattr(newton_schulz, "working_dtype", lambda device: torch.float32)
    ours = MuonGrokfast(model, MuGrokConfig(muon_lr=0.02, grokfast_lambda=0.0, weight_decay=0.1))
    theirs = torch.optim.Muon(twin.matrices.parameters(), lr=0.02, weight_decay=0.1)
    for seed in range(10):
        set_gradients(model, seed)
        set_gradients(twin, seed)
        ours.step()
        theirs.step()
    for p, q in zip(model.matrices.parameters(), twin.matrices.parameters(), strict=True):
        assert float((p - q).detach().abs().max()) < 2e-5


@pytest.mark.parametrize("nbytes", [64, 5000, 2**24])
def test_tiles_of_any_size_give_the_same_weights(monkeypatch, nbytes):
    """Tiling is about the cache: a step is the same where tensors are cut, grouped or taken together."""
    weights = []
    for size in (tiles.TILE_BYTES, nbytes):
        monkeypatch.setattr(tiles, "TILE_BYTES", size)
        model = Model()
        optimizer = MuonGrokfast(model, MuGrokConfig.preset("cognate"))
        for seed in range(3):
            set_gradients(model, seed)
            optimizer.step()
        weights.append([p.detach() for p in model.parameters()])
        assert all(float(s["step"]) == 3 for s in optimizer.state.values() if "step" in s)
    assert all(torch.allclose(p, q, rtol=1e-12, atol=1e-14) for p, q in zip(*weights, strict=True))


def test_tiles_hold_every_tensor_once_and_no_more_than_fits():
    tensors = [torch.zeros(n) for n in (10, 300, 5, 5, 2000, 100, 100, 1)]
    groups = list(tiles.tiles(tensors))
    assert [i for group in groups for i in group] == list(range(8))
    whole = {i: tensors[i] for i in range(8)}
    assert all(len(group) == 1 or sum(whole[i].nbytes for i in group) <= tiles.TILE_BYTES for group in groups)


@pytest.mark.parametrize("dtype, band", [(torch.float32, (0.68, 1.21)), (torch.bfloat16, newton_schulz.BAND)])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("smallest", [0.5, 0.1, 0.02])
def test_the_band_holds_in_both_types_on_ill_conditioned_matrices(dtype, band, shape, smallest):
    """Singular values spread evenly in their logarithm from 1 to `smallest`."""
    dice = torch.Generator().manual_seed(3)
    u, _, v = torch.linalg.svd(torch.randn(4, *shape, generator=dice), full_matrices=False)
    spread = torch.logspace(0, torch.log10(torch.tensor(smallest)).item(), min(shape))
    values = torch.linalg.svdvals(newton_schulz.orthogonalize((u * spread) @ v, dtype))
    assert band[0] <= float(values.min()) and float(values.max()) <= band[1]
