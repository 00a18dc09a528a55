"""Laws of the six techniques and the eight recipes."""

import math

import pytest
import torch
from small_weights import weights

from forgelib.merge import (
    RECIPES,
    Genes,
    MergeRefused,
    dare,
    dfs,
    frankenmerge,
    linear,
    recipe,
    slerp,
    ties,
)
from forgelib.merge.frankenmerge import layer_index

ALL = {
    "linear": lambda m, base: linear(m),
    "weighted linear": lambda m, base: linear(m, (0.2, 0.0, 3.0)),
    "slerp": lambda m, base: slerp(m[0], m[1], 0.3),
    "dare": lambda m, base: dare(m, base, 0.9, 0),
    "ties": lambda m, base: ties(m, base, 0.2),
    "frankenmerge": lambda m, base: frankenmerge(m, "ABC"),
    "dfs": lambda m, base: dfs(m),
    **{f"recipe {bits}": lambda m, base, bits=bits: recipe(bits).merge(m, base) for bits in RECIPES},
}
every = pytest.mark.parametrize("merge", ALL.values(), ids=ALL)


def same(a, b):
    return list(a) == list(b) and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def near(a, b, tolerance=1e-6):
    return all(torch.allclose(a[n].double(), b[n].double(), rtol=tolerance, atol=tolerance) for n in a)


def flat(weights):
    return torch.cat([t.reshape(-1) for t in weights.values()])


@every
def test_a_model_merged_with_itself_is_itself_to_the_last_bit(merge, parents):
    """The trunk must be that model too: from another one DARE drops and TIES trims what leads from it to the model."""
    a = parents[0]
    assert same(merge([a, a, a], a), a)


@every
def test_parents_are_left_as_they_were_and_share_nothing_with_the_child(merge, parents, trunk):
    before = [{name: t.clone() for name, t in model.items()} for model in (*parents, trunk)]
    child = merge(parents, trunk)
    for tensor in child.values():
        tensor.fill_(7.0)
    assert all(same(old, new) for old, new in zip(before, (*parents, trunk), strict=True))


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_type_is_kept_and_the_sum_is_float32(merge, dtype, parents, trunk):
    models = [{name: t.to(dtype) for name, t in model.items()} for model in (*parents, trunk)]
    wide = [{name: t.double() for name, t in model.items()} for model in models]
    child, wanted = merge(models[:3], models[3]), merge(wide[:3], wide[3])
    assert {t.dtype for t in child.values()} == {dtype}
    assert near(child, wanted, 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps)


@every
def test_names_in_another_order_give_the_same_numbers(merge, parents, trunk):
    child = merge(parents, trunk)
    turned = merge([dict(reversed(model.items())) for model in parents], dict(reversed(trunk.items())))
    assert list(turned) == list(reversed(child)) and all(torch.equal(child[name], turned[name]) for name in child)


@every
def test_tied_weights_stay_tied_and_merge_as_one(merge, parents, trunk):
    """Whichever of the names comes first, and as they would where a file holds the embedding only."""
    alone = merge(parents, trunk)
    for turn in (dict, lambda items: dict(reversed(items))):
        tied = [turn([*m.items(), ("lm_head.weight", m["model.embed_tokens.weight"])]) for m in (*parents, trunk)]
        child = merge(tied[:3], tied[3])
        assert child["lm_head.weight"] is child["model.embed_tokens.weight"]
        assert list(child) == list(tied[0])
        assert same({name: child[name] for name in alone}, alone)


@every
def test_weights_tied_in_one_model_only_are_refused(merge, parents, trunk):
    tied = [{**model, "lm_head.weight": model["model.embed_tokens.weight"]} for model in (*parents, trunk)]
    tied[1]["lm_head.weight"] = tied[1]["lm_head.weight"].clone()
    with pytest.raises(MergeRefused, match=r"lm_head.weight.*tied in one model"):
        merge(tied[:3], tied[3])


@every
def test_integers_are_copied_when_equal_and_refused_when_not(merge, parents, trunk):
    models = [{**model, "steps": torch.tensor([3, 4]), "mask": torch.tensor(True)} for model in (*parents, trunk)]
    child = merge(models[:3], models[3])
    assert torch.equal(child["steps"], torch.tensor([3, 4])) and child["mask"].dtype == torch.bool
    assert child["steps"] is not models[0]["steps"]
    models[1]["steps"] = torch.tensor([3, 5])
    with pytest.raises(MergeRefused, match=r"steps is torch\.int64 and differs"):
        merge(models[:3], models[3])


@every
def test_other_shapes_and_names_are_refused(merge, parents, trunk):
    narrow = {**parents[1], "model.norm.weight": torch.zeros(7)}
    with pytest.raises(MergeRefused, match=r"model.norm.weight has shapes .*\(7,\)"):
        merge([parents[0], narrow, parents[2]], trunk)
    less = {name: t for name, t in parents[1].items() if name != "model.norm.weight"}
    with pytest.raises(MergeRefused, match=r"model 0 has a tensor model.norm.weight, model 1 has not"):
        merge([parents[0], less, parents[2]], trunk)


def test_linear_is_symmetric_and_its_weights_are_shares(parents):
    a, b, c = parents
    assert near(linear([a, b, c]), linear([c, a, b]))
    assert near(linear([a, b, c], (1, 2, 3)), linear([c, a, b], (0.3, 0.1, 0.2)))
    assert same(linear([a, b, c], (0, 0, 5)), c) and same(linear([a, b, c], (1, 0, 0)), a)


def test_slerp_from_the_other_end_and_at_the_ends(parents):
    a, b, _ = parents
    for t in (0.0, 0.2, 0.5, 0.9, 1.0):
        assert near(slerp(a, b, t), slerp(b, a, 1 - t))
    assert near(slerp(a, b, 0.0), a) and near(slerp(a, b, 1.0), b)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.8])
def test_slerp_of_unit_vectors_has_norm_one_and_divides_the_angle(t):
    a, b = (
        torch.nn.functional.normalize(torch.randn(3000, generator=torch.Generator().manual_seed(s)), dim=0)
        for s in (1, 2)
    )
    point = slerp({"w": a}, {"w": b}, t)["w"]
    angle = math.acos(float(a.double() @ b.double()))
    assert float(point.norm()) == pytest.approx(1.0, abs=1e-6)
    assert math.acos(float(a.double() @ point.double())) == pytest.approx(t * angle, abs=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_slerp_goes_straight_where_no_circle_is_known(size):
    """Nearly parallel, opposite, zero; and a circle where only the squares leave float32's range."""
    a = size * torch.tensor([1.0, 2.0, 3.0])
    for b in (1.5 * a + size * torch.tensor([0.0, 0.0, 0.01]), -a, torch.zeros(3)):
        assert torch.equal(slerp({"w": a}, {"w": b}, 0.25)["w"], torch.lerp(a, b, 0.25))
    b = size * torch.tensor([3.0, -1.0, 0.5])
    theta = math.acos(float(torch.cosine_similarity(a.double() / size, b.double() / size, dim=0)))
    wanted = (math.sin(0.75 * theta) * a.double() + math.sin(0.25 * theta) * b.double()) / math.sin(theta)
    assert torch.allclose(slerp({"w": a}, {"w": b}, 0.25)["w"].double() / size, wanted / size, rtol=1e-6)


def test_no_parent_is_ignored_by_slerp_in_a_recipe(parents, trunk):
    """Stage 1 alone is seen where FrankenMerge takes every layer from it."""
    a, b, c = parents
    child = recipe("100").merge([a, b, c], trunk, Genes(pattern="A"))
    assert near(child, slerp(slerp(a, b, 0.5), c, 1 / 3))
    assert not near(child, slerp(a, b, 0.5), 1e-2)


def test_dare_without_dropping_is_task_arithmetic(parents, trunk):
    wanted = {
        n: trunk[n] + 0.7 * sum(s * (m[n] - trunk[n]) for s, m in zip((0.5, 0.3, 0.2), parents, strict=True))
        for n in trunk
    }
    assert near(dare(parents, trunk, 0.0, 0, weights=(5, 3, 2), scale=0.7), wanted)


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_dare_is_unbiased(p, parents, trunk):
    """The mean over n seeds lies around task arithmetic with variance sum_i (w_i tau_i)^2 p / (1 - p) / n."""
    n, exact = 200, flat(dare(parents, trunk, 0.0, 0)).double()
    total = sum(flat(dare(parents, trunk, p, seed)).double() for seed in range(n))
    taus = torch.stack([flat(model).double() - flat(trunk).double() for model in parents])
    z = (total / n - exact) / ((taus / 3).square().sum(0) * p / (1 - p) / n).sqrt()
    assert float(z.abs().max()) < 5.5
    assert float(z.square().mean()) == pytest.approx(1.0, abs=5 * (2 / z.numel()) ** 0.5)
    assert abs(float(z.mean())) < 5 / z.numel() ** 0.5


def test_dare_keeps_its_share_with_a_mask_of_its_own_for_each_seed_model_and_tensor():
    zeros, ones = ({name: torch.full((40_000,), value) for name in "ab"} for value in (0.0, 1.0))
    kept = [
        t != 0
        for seed in (0, 1)
        for i in range(2)
        for t in dare([ones, zeros][:: 1 - 2 * i], zeros, 0.9, seed).values()
    ]
    for mask in kept:
        assert float(mask.float().mean()) == pytest.approx(0.1, abs=5 * (0.09 / 40_000) ** 0.5)
    for i, one in enumerate(kept):
        for other in kept[:i]:
            assert float((one & other).float().mean()) == pytest.approx(0.01, abs=5 * (0.0099 / 40_000) ** 0.5)


def test_dare_gives_the_same_masks_on_every_machine_and_in_every_version():
    zeros, ones = {"a": torch.zeros(30)}, {"a": torch.ones(30)}
    assert dare([ones], zeros, 0.8, 7)["a"].nonzero().flatten().tolist() == [8, 12, 13, 20, 25, 27]


def test_ties_follows_the_paper_on_a_vector_worked_by_hand():
    tau = torch.tensor([[3, -1, 0.1, 2], [-2, -2, 0.2, 0.05], [4, 3, -0.05, -1]])
    base = torch.tensor([10.0, 20.0, 30.0, 40.0])
    wanted = torch.tensor([3.5, 3, 0, 2])
    child = ties([{"w": base + row} for row in tau], {"w": base}, 0.5)["w"]
    assert torch.allclose(child, base + wanted, atol=1e-5)
    assert torch.allclose(ties([{"w": row} for row in tau], {"w": 0 * base}, 0.5, 2.0)["w"], 2 * wanted)


def test_ties_trims_the_whole_vector_and_not_each_tensor():
    base = {"loud": torch.zeros(50), "quiet": torch.zeros(50)}
    g = torch.Generator().manual_seed(0)
    model = {"loud": torch.rand(50, generator=g) + 10, "quiet": torch.rand(50, generator=g)}
    child = ties([model], base, 0.5)
    assert torch.equal(child["loud"], model["loud"]) and torch.equal(child["quiet"], base["quiet"])
    for k in (0.03, 0.29, 0.77):
        assert int((flat(ties([model], base, k)) != 0).sum()) == round(100 * k)


def test_ties_elects_no_sign_where_masses_are_equal():
    child = ties([{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([-1.0, 2.0])}], {"w": torch.zeros(2)}, 1.0)
    assert child["w"].tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    "name, layer",
    [
        ("model.layers.3.mlp.experts.5.weight", 3),
        ("model.blocks.2.out_proj.weight", 2),
        ("transformer.h.11.attn.c_attn.bias", 11),
        ("model.embed_tokens.weight", None),
        ("model.layer2norm.weight", None),
    ],
)
def test_the_layer_is_the_first_number_in_the_name(name, layer):
    assert layer_index(name) == layer


def test_frankenmerge_takes_whole_layers_and_everything_else_from_the_first_letter(parents):
    child = frankenmerge(parents, "CAB")
    for name, tensor in child.items():
        wanted = {0: 2, 1: 0, 2: 1, 3: 2, None: 2}[layer_index(name)]
        assert torch.equal(tensor, parents[wanted][name]), name


def test_dfs_weighs_by_inverse_variance_and_equally_where_one_is_zero():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(1000, generator=g), 3 * torch.randn(1000, generator=g) + 5
    v = [float(x.double().var(correction=0)) for x in (a, b)]
    child = dfs([{"w": a, "flat": torch.ones(4)}, {"w": b, "flat": torch.arange(4.0)}])
    assert torch.allclose(child["w"], (a / v[0] + b / v[1]) / (1 / v[0] + 1 / v[1]), atol=1e-6)
    assert torch.allclose(child["flat"], (1 + torch.arange(4.0)) / 2)


def test_eight_recipes_give_eight_different_children(parents, trunk):
    children = [flat(recipe(bits).merge(parents, trunk)) for bits in RECIPES]
    assert len(RECIPES) == 8
    for i, one in enumerate(children):
        assert bool(one.isfinite().all())
        assert all(float((one - other).abs().max()) > 1e-3 for other in children[:i])


def test_a_recipe_is_its_stages_one_after_the_other(parents, trunk):
    """X between the parents, Y on the trunk, then layers of X, Y and halfway, or their mean: from whole models."""
    genes = Genes(weights=(1, 2, 3), t=0.3, drop_rate=0.5, top_k=0.4, scale=1.2, pattern="BCA", seed=5)
    a, b, c = parents
    xs = linear(parents, (1, 2, 3)), slerp(slerp(a, b, 0.3), c, 1 / 3)
    heavier = [  # TIES counts each task vector three times its weight: 0.5, 1 and 1.5
        {name: trunk[name] + factor * (model[name] - trunk[name]) for name in trunk}
        for factor, model in zip((0.5, 1.0, 1.5), parents, strict=True)
    ]
    ys = dare(parents, trunk, 0.5, 5, (1, 2, 3), 1.2), ties(heavier, trunk, 0.4, 1.2)
    for bits in RECIPES:
        x, y = xs[int(bits[0])], ys[int(bits[1])]
        wanted = dfs([x, y]) if bits[2] == "1" else frankenmerge([x, y, linear([x, y])], "BCA")
        assert near(recipe(bits).merge(parents, trunk, genes), wanted), bits
    assert recipe("101").techniques == ("SLERP", "DARE", "DFS") and recipe("010").bits == "010"


@pytest.mark.parametrize(
    "field, value, text",
    [
        ("t", 1.5, "t = 1.5: must be a number between 0 and 1"),
        ("t", float("nan"), "t = nan"),
        ("drop_rate", 1.0, "drop_rate = 1.0: must be a number between 0 and 0.999"),
        ("top_k", 0, "top_k = 0: must be"),
        ("scale", "1", "scale = '1': must be"),
        ("seed", -1, "seed = -1: must be an integer"),
        ("weights", (1, -1, 1), r"weights = \(1, -1, 1\): must be"),
        ("weights", (0, 0, 0), "not all 0"),
        ("pattern", "ABD", "pattern = 'ABD': must be 1 to 64 letters of ABC"),
        ("pattern", "", "pattern = ''"),
    ],
)
def test_bad_genes_are_refused_naming_field_value_and_range(field, value, text):
    with pytest.raises(ValueError, match=text):
        Genes(**{field: value})


def test_bad_calls_are_refused(parents, trunk):
    with pytest.raises(ValueError, match="bits = '21'"):
        recipe("21")
    with pytest.raises(ValueError, match="letters of AB"):
        frankenmerge(parents[:2], "ABC")
    with pytest.raises(ValueError, match="one for each of the 3 models"):
        linear(parents, (1, 2))
    with pytest.raises(ValueError, match="one for each of the 2 models"):
        recipe("000").merge(parents[:2], trunk, Genes(weights=(1, 1, 1)))
    with pytest.raises(MergeRefused, match="1 models: a merge needs at least two"):
        recipe("000").merge(parents[:1], trunk)
    with pytest.raises(MergeRefused, match="No models"):
        linear([])


def test_two_parents_and_five_merge_as_well(trunk):
    for n in (2, 5):
        models = [weights(10 + i, trunk, 0.5) for i in range(n)]
        for bits in RECIPES:
            assert bool(flat(recipe(bits).merge(models, trunk)).isfinite().all())


def test_emphasis_turns_the_weights_of_one_group_alone():
    """Groups in order: outside, layers.0, layers.1; Linear's weights sum to one, DARE's as asked."""
    names = ("embed.weight", "layers.0.weight", "layers.1.weight")
    base = {name: torch.zeros(3) for name in names}
    models = [{name: torch.full((3,), value) for name in names} for value in (1.0, 3.0)]
    emphasis = ((1, 1), (0, 1), (2, 2))
    alone = Genes(pattern="A", emphasis=emphasis)
    assert [recipe("000").merge(models, base, alone)[name][0].item() for name in names] == [2.0, 3.0, 2.0]
    added = Genes(pattern="B", drop_rate=0.0, scale=1.5, emphasis=emphasis)
    assert [recipe("000").merge(models, base, added)[name][0].item() for name in names] == [3.0, 2.25, 6.0]
    with pytest.raises(ValueError, match="each row needs a factor for each of the 2 models"):
        recipe("000").merge(models, base, Genes(emphasis=((1, 1, 1),)))
    with pytest.raises(ValueError, match="between 0 and 4"):
        Genes(emphasis=((1, -1),))


@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["far apart", "near each other"])
def test_ties_of_two_models_about_their_own_mean_is_that_mean(scale):
    """Their task vectors are opposite: what is left of the sum is the rounding of the mean, and elects no sign."""
    first = weights(0)
    second = weights(1, around=first, step=scale)
    mean = linear([first, second])
    assert near(ties([first, second], mean, 1.0), mean, 1e-6)
