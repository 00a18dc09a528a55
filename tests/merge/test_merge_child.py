"""A child is looked over: each planted fault fails its own check, a sound child passes all."""

import pytest
import torch

from forgelib.merge import RECIPES, check_child, recipe

NORM = "model.norm.weight"


def failed(report):
    return [check.name for check in report.gate.checks if not check.passed]


def forward(child):
    return child["model.embed_tokens.weight"] @ child["model.layers.0.q.weight"]


@pytest.mark.parametrize("bits", RECIPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_sound_child_passes(bits, dtype, parents, trunk):
    *models, base = ({name: t.to(dtype) for name, t in model.items()} for model in (*parents, trunk))
    child = recipe(bits).merge(models, base)
    exact = recipe(bits).in_float64(models, base)
    report = check_child(child, models, base, recompute=exact, forward=forward, samples=len(child))
    assert report.passed, report.gate.text()
    assert len(report.gate.checks) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(value, parents, trunk):
    child = recipe("000").merge(parents, trunk)
    child[NORM][3] = value
    assert failed(check_child(child, parents)) == ["tensors with NaN or infinity"]
    assert NORM in check_child(child, parents).gate.text()


def test_a_tensor_that_collapsed(parents, trunk):
    child = recipe("000").merge(parents, trunk)
    child[NORM].fill_(0.5)
    report = check_child(child, parents)
    assert failed(report) == ["tensors that lost all variance"] and NORM in report.gate.text()
    flat = [{**model, NORM: torch.ones(8)} for model in parents]
    assert check_child(child, flat).passed


def test_one_element_off_what_float64_gives(parents, trunk):
    child, exact = recipe("110").merge(parents, trunk), recipe("110").in_float64(parents, trunk)
    child[NORM][0] *= 1.001
    report = check_child(child, parents, trunk, recompute=exact, samples=len(child))
    assert failed(report) == ["share of elements off float64"] and NORM in report.gate.text()
    assert check_child(child, parents, trunk, recompute=exact, samples=0).passed


def test_a_forward_pass_that_fails(parents, trunk):
    child = recipe("000").merge(parents, trunk)
    assert failed(check_child(child, parents, forward=lambda c: forward(c).log()))
    report = check_child(child, parents, forward=lambda c: c["no such tensor"])
    assert failed(report) and "KeyError" in report.gate.text()


def test_a_child_that_does_not_survive_saving(parents, trunk, monkeypatch):
    child = recipe("000").merge(parents, trunk)
    child["tied"] = child[NORM]
    assert check_child(child, parents).passed
    import safetensors.torch

    def rounding(tensors, file):
        safetensors.torch.save_file({n: t.half().float() for n, t in tensors.items()}, file)

    monkeypatch.setattr("forgelib.merge.child.save_file", rounding)
    assert failed(check_child(child, parents)) == ["tensors changed by saving"]
    assert check_child(child, parents, reload=False).passed


def test_the_rows_measure_what_they_say(parents, trunk):
    child = recipe("001").merge(parents, trunk)
    rows = check_child(child, parents, trunk, labels=["reasoning", "memory", "speed"]).rows
    assert [row["model"] for row in rows] == ["reasoning", "memory", "speed", "child"]

    def flat(model):
        return torch.cat([model[name].double().reshape(-1) for name in child])

    own, base = flat(child), flat(trunk)
    for row, model in zip(rows, (*parents, child), strict=True):
        w = flat(model)
        assert row["norm"] == pytest.approx(float(w.norm()))
        assert row["distance to child"] == pytest.approx(float((w - own).norm()), abs=1e-12)
        assert row["distance to trunk"] == pytest.approx(float((w - base).norm()))
        assert row["changed weights"] == pytest.approx(float((w != base).double().mean()))
        cosine = torch.cosine_similarity(w - base, own - base, dim=0)
        assert row["cosine with child"] == pytest.approx(float(cosine))
    assert set(check_child(child, parents).rows[0]) == {"model", "norm", "distance to child"}


def test_a_child_that_is_the_trunk_has_no_direction(trunk, parents):
    row = check_child(trunk, parents, trunk).rows[-1]
    assert row["changed weights"] == 0 and row["cosine with child"] is None
