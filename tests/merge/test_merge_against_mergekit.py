"""The same children as mergekit's on a small Llama; where the two rules differ, by how much and why."""

import pytest
import torch
from mergekit.merge_methods.api import merge_state_dicts
from transformers import LlamaConfig, LlamaForCausalLM

from forgelib.merge import dare, linear, slerp, ties

TOLERANCE = 1e-6


def llama(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=250,
        hidden_size=40,
        intermediate_size=100,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return dict(LlamaForCausalLM(config).state_dict())


@pytest.fixture(scope="module")
def family():
    """A trunk, three models far from it and from each other, three siblings near it; about 50k numbers each."""
    trunk, far = llama(0), [llama(seed) for seed in (1, 2, 3)]
    near = [{name: trunk[name] + 0.01 * t for name, t in model.items()} for model in far]
    return trunk, far, near


def with_trunk(models, trunk):
    return {"trunk": trunk, **dict(enumerate(models))}


def assert_equal(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert float((ours[name] - theirs[name]).abs().max()) <= TOLERANCE, name


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.2, 0.5, 0.3), (3.0, 0.0, 1.0)])
def test_linear(family, weights):
    for models in family[1:]:
        assert_equal(linear(models, weights), merge_state_dicts(models, "linear", parameters={"weight": list(weights)}))


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_slerp_on_the_circle_and_on_the_straight_line(family, t):
    for a, b, _ in family[1:]:
        assert_equal(slerp(a, b, t), merge_state_dicts({0: a, 1: b}, "slerp", parameters={"t": t}, base=0))


@pytest.mark.parametrize("top_k", [0.1, 0.2, 0.5, 1.0])
def test_ties_where_one_tensor_is_the_whole_vector(family, top_k):
    """Tensor by tensor, each as a model of its own: there trimming the whole vector and the tensor are the same."""
    trunk, models, _ = family
    compared = 0
    for name, base in trunk.items():
        if base.unique().numel() == 1:
            continue  # norms of ones in all models: no task vector
        assert int(top_k * base.numel()) == round(top_k * base.numel()), "mergekit keeps floor(k n), we round"
        theirs = merge_state_dicts(
            with_trunk([{"w": m[name]} for m in models], {"w": base}),
            "ties",
            parameters={"weight": 1.0, "density": top_k},
            base="trunk",
        )
        assert_equal(ties([{"w": m[name]} for m in models], {"w": base}, top_k), theirs)
        compared += 1
    assert compared >= 5


def test_ties_differs_on_a_whole_model_because_mergekit_trims_each_tensor(family):
    """A tensor that moved ten times as far as the others: ours keeps the largest of all, mergekit 20% of each."""
    trunk, models, _ = family
    loud = "model.layers.1.mlp.up_proj.weight"
    moved = [{n: trunk[n] + (10 if n == loud else 1) * (m[n] - trunk[n]) for n in m} for m in models[:1]]
    ours = ties(moved, trunk, 0.2)
    theirs = merge_state_dicts(
        with_trunk(moved, trunk), "ties", parameters={"weight": 1.0, "density": 0.2}, base="trunk"
    )

    def kept(child, name):
        return float((child[name] != trunk[name]).double().mean())

    size = sum(t.numel() for t in trunk.values())
    for name in (loud, "model.layers.0.mlp.up_proj.weight"):
        assert kept(theirs, name) == pytest.approx(0.2, abs=0.001)
    assert kept(ours, loud) > 0.8 and kept(ours, "model.layers.0.mlp.up_proj.weight") < 0.2
    assert sum(kept(ours, n) * t.numel() for n, t in trunk.items()) == pytest.approx(0.2 * size, abs=3)


def test_ties_differs_where_masses_are_equal():
    """Ours elects no sign, mergekit plus."""
    base, models = {"w": torch.zeros(2)}, [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([-1.0, 2.0])}]
    parameters = {"weight": 1.0, "density": 1.0}
    theirs = merge_state_dicts(with_trunk(models, base), "ties", parameters=parameters, base="trunk")
    assert theirs["w"].tolist() == [1.0, 2.0] and ties(models, base, 1.0)["w"].tolist() == [0.0, 2.0]


def test_dare_differs_in_its_rescaling(family):
    """Ours divides by 1 - p, the paper's rule, unbiased; mergekit matches the L1 norm. Without dropping both agree."""
    trunk, models, _ = family
    parameters = {"weight": 1 / 3, "density": 1.0}
    theirs = merge_state_dicts(with_trunk(models, trunk), "dare_linear", parameters=parameters, base="trunk")
    assert_equal(dare(models, trunk, 0.0, 0), theirs)
    base, model = {"w": torch.zeros(50)}, {"w": torch.arange(1.0, 51.0)}
    torch.manual_seed(0)
    theirs = merge_state_dicts(
        with_trunk([model], base), "dare_linear", parameters={"weight": 1.0, "density": 0.5}, base="trunk"
    )
    kept = theirs["w"] != 0
    assert torch.allclose(theirs["w"][kept], model["w"][kept] * model["w"].sum() / model["w"][kept].sum())
    ours = dare([model], base, 0.5, 0)["w"]
    assert torch.equal(ours[ours != 0], 2 * model["w"][ours != 0])
