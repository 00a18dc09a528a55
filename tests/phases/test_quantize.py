"""Layer after layer becomes ternary, each measured; one that costs too much is put back, and too much drop undone."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from forgelib.phases.quantize import QuantizeConfig, calibration_loss, fall_back, kept, quantize
from forgelib.quant import Rounding, TernaryLinear, convert


def small(scale=0.1):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=40, num_key_value_heads=4, initializer_range=scale, **sizes)).eval()


def batches(n=2):
    ids = torch.randint(0, 40, (n, 3, 16), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :, :4] = -100
    return list(zip(ids, labels, strict=True))


def inner(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, TernaryLinear)}


def loss_by_hand(model, calibration):
    losses = []
    for ids, _ in calibration:
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        losses += [F.cross_entropy(logits[b, t - 1], ids[b, t]) for b in range(len(ids)) for t in range(4, 16)]
    return float(torch.stack(losses).mean())


def test_every_layer_is_rounded_in_turn_and_what_is_said_of_it_is_true():
    model, calibration = small(), batches()
    parent = copy.deepcopy(model)
    assert calibration_loss(model, calibration) == pytest.approx(loss_by_hand(model, calibration), rel=1e-5)
    whole, so_far = loss_by_hand(parent, calibration), copy.deepcopy(parent)
    convert(so_far)
    for layer in inner(so_far).values():
        layer.share = 0.0
    records = []
    for record in quantize(model, calibration, QuantizeConfig(put_back=math.inf)):
        records.append(record)
        name = record["name"]
        read = []
        handle = so_far.get_submodule(name).register_forward_pre_hook(lambda m, x, read=read: read.append(x[0]))
        before = loss_by_hand(so_far, calibration)
        handle.remove()
        layer = so_far.get_submodule(name)
        plain = torch.cat(read).flatten(0, 1) @ layer.weight.T
        layer.share = 1.0
        off = (layer(torch.cat(read).flatten(0, 1)) - plain).detach()
        assert record["output_error"] == pytest.approx(float(off.norm() / plain.detach().norm()), rel=1e-4)
        assert record["loss_before"] == pytest.approx(before, rel=1e-4)
        assert record["loss_after"] == pytest.approx(loss_by_hand(so_far, calibration), rel=1e-4)
        alone = copy.deepcopy(parent)
        convert(alone)
        for other, module in inner(alone).items():
            module.share = float(other == name)
        assert record["cost"] == pytest.approx(loss_by_hand(alone, calibration) - whole, abs=1e-4)
        assert record["sparsity"] == layer.sparsity() and 0 < record["weight_error"] < 1
    assert [record["name"] for record in records] == list(inner(model)) and len(records) == 14
    assert all(layer.share == 1.0 for layer in inner(model).values()) and not model.training


def test_a_layer_that_costs_too_much_is_put_back_and_no_other():
    model, calibration = small(), batches()
    costs = {r["name"]: r["cost"] for r in quantize(copy.deepcopy(model), calibration, QuantizeConfig(put_back=9.0))}
    limit = sorted(costs.values())[-3]
    assert limit > 0
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    records = list(quantize(model, calibration, QuantizeConfig(put_back=limit)))
    back = {record["name"] for record in records if record["put_back"]}
    assert back == {name for name, cost in costs.items() if cost > limit} and len(back) == 2
    assert set(inner(model)) == set(costs) - back
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    for record in records:
        if record["put_back"]:
            assert record["loss_after"] == pytest.approx(record["loss_before"], rel=1e-6)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="calibration is empty"):
        next(quantize(small(), [], QuantizeConfig()))
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="no token"):
        next(quantize(small(), [(ids, torch.full_like(ids, -100))], QuantizeConfig()))
    broken = small()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="before anything is rounded"):
        next(quantize(broken, batches(), QuantizeConfig()))
    with pytest.raises(ValueError, match="put_back"):
        QuantizeConfig(put_back=0.0)


def test_a_model_in_training_is_measured_in_evaluation_and_trains_on():
    model = small().train()
    list(quantize(model, batches(1), QuantizeConfig(rounding=Rounding(per_row=True))))
    assert model.training and all(layer.rounding.per_row for layer in inner(model).values())


def test_kept_is_the_mean_over_categories():
    assert kept({"math": 0.8, "code": 0.2}, {"math": 0.7, "code": 0.2}) == pytest.approx(0.9)
    with pytest.raises(ValueError, match="no quality to keep"):
        kept({"math": 0.0}, {"math": 0.1})
    with pytest.raises(ValueError, match="must be the same"):
        kept({"math": 0.8}, {"code": 0.8})


@pytest.mark.parametrize("needed", [1, 5, 14])
def test_the_costliest_layers_go_back_until_the_drop_is_small(needed):
    """Quality hangs on the `needed` costliest layers: these go back, in stages of an eighth, and no stage after."""
    model = small()
    convert(model)
    costs = {name: float(i) for i, name in enumerate(inner(model))}
    vital = sorted(costs, key=costs.get)[-needed:]

    def measure(found):
        return {"right": 1.0 if not set(vital) & set(inner(found)) else 0.85}

    records = list(fall_back(model, costs, {"right": 1.0}, measure))
    stages = -(-needed // 2)
    assert len(records) == stages and records[-1]["kept"] == 1.0 and all(r["kept"] < 0.9 for r in records[:-1])
    assert [name for record in records for name in record["put_back"]] == sorted(costs, key=costs.get)[::-1][
        : 2 * stages
    ]
    assert records[-1]["ternary"] == len(inner(model)) == 14 - 2 * stages


def test_it_ends_where_nothing_is_left_to_put_back():
    model = small()
    convert(model)
    costs = dict.fromkeys(inner(model), 0.0)
    records = list(fall_back(model, costs, {"right": 1.0}, lambda m: {"right": 0.5}, stages=4))
    assert records[-1]["ternary"] == 0 and records[-1]["kept"] == 0.5 and len(records) == 4
