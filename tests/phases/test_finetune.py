"""Fine-tuning ternary layers: the rounding is blended in, broken off it ends in the same bits, and has a control."""

import copy
from dataclasses import replace

import pytest
import torch
from toy_ternary import batches_of, parent, shown

from forgelib.core.health import NonFiniteError
from forgelib.core.loop import Checkpointer, Control, RunStopped
from forgelib.phases.finetune import FinetuneConfig, finetune, full_precision, kl_to, rounding_share
from forgelib.quant import TernaryLinear, convert

CONFIG = FinetuneConfig(
    seed=0, muon_lr=0.05, adamw_lr=0.03, grokfast_lambda=0.3, batch_size=8, rounding_warmup=0.5, looks=2
)


def ternary():
    model = parent()
    convert(model, smallest=16)
    return model


def tuned(tmp_path, config=CONFIG, model=None, **kwargs):
    model = ternary() if model is None else model
    checkpointer = Checkpointer(tmp_path / "checkpoints", every_steps=1)
    return model, finetune(model, shown, config, pad=0, checkpointer=checkpointer, **kwargs)


def layers(model):
    return [m for m in model.modules() if isinstance(m, TernaryLinear)]


def test_the_rounding_rises_over_its_share_of_the_steps_and_then_is_whole():
    shares = [rounding_share(step, 10, 0.4) for step in range(10)]
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, *[1.0] * 6])
    assert [rounding_share(step, 10, 0.0) for step in range(10)] == [1.0] * 10
    assert rounding_share(9, 10, 1.0) < 1.0, "and `finetune` ends at 1 all the same"


def test_rows_of_like_length_go_together(tmp_path):
    """64 rows of 8 to 71 tokens: 3,072 places for 2,528 tokens; in random batches there would be 5,000."""
    rows = [([1] * n, [1] * n) for n in range(8, 72)]
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    config = replace(CONFIG, epochs=1)
    records = list(finetune(ternary(), lambda epoch: rows, config, pad=0, checkpointer=checkpointer))
    assert sum(record["tokens"] for record in records) < 1.3 * sum(len(ids) for ids, _ in rows)


def test_records_say_what_was_done_and_the_layers_end_ternary(tmp_path):
    looked = []

    def measure(model):
        looked.append([layer.share for layer in layers(model)])
        assert not model.training
        return {"right": 0.5}

    model, steps = tuned(tmp_path, measure=measure)
    seen = []
    for record in steps:
        seen.append(record)
    assert len(seen) == 8 and seen[-1]["epoch"] == 2.0
    assert [r["rounding_share"] for r in seen] == [rounding_share(step, 8, 0.5) for step in range(8)]
    assert looked == [[1.0] * len(layers(model))] * 2, "quality is that of the ternary model, on the way as well"
    assert [r["step"] for r in seen if "right" in r] == [3, 7] and all("sparsity" in r for r in seen if "right" in r)
    assert all(layer.share == 1.0 for layer in layers(model)) and not model.training
    assert {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second"} <= set(seen[0])


def test_it_recovers_what_rounding_lost(tmp_path):
    """The language of the toy is learnt by the parent, lost by rounding, and learnt again; the control trains on."""
    learnt = parent()
    config = replace(CONFIG, epochs=8)
    for _ in full_precision(learnt, shown, config, pad=0, checkpointer=Checkpointer(tmp_path / "p", every_seconds=1e9)):
        pass
    before = held_out_loss(learnt)
    model = copy.deepcopy(learnt)
    convert(model, smallest=16)
    rounded = held_out_loss(model)
    control = copy.deepcopy(learnt)
    steps = full_precision(control, shown, config, pad=0, checkpointer=Checkpointer(tmp_path / "c", every_seconds=1e9))
    assert len(list(steps)) == len(list(tuned(tmp_path, config, model)[1])), "the control has as many steps"
    after = held_out_loss(model)
    assert before < 0.5 * rounded and after < before + 0.3 * (rounded - before)
    assert held_out_loss(control) <= before and not layers(control)


@torch.no_grad()
def held_out_loss(model):
    ids, labels = batches_of(seed=99)
    return float(model.eval()(input_ids=ids, labels=labels).loss)


def test_distillation_moves_towards_the_parent(tmp_path):
    teacher, ids, apart = parent(), batches_of(seed=99), {}
    for weight in (0.0, 20.0):
        config = replace(CONFIG, distillation=weight, epochs=4)
        model, steps = tuned(tmp_path / str(weight), config, teacher=teacher)
        assert all(("kl" in record) == bool(weight) for record in steps)
        with torch.no_grad():
            apart[weight] = float(kl_to(teacher(input_ids=ids[0]).logits, model(input_ids=ids[0]).logits, ids[1]))
    assert apart[20.0] < 0.3 * apart[0.0]
    logits, target = torch.randn(2, 2, 5, 7).unbind()
    labels = torch.tensor([[-100, 3, 3, 3, -100], [-100, -100, 3, 3, 3]])
    p, q = target.softmax(-1), logits.softmax(-1)
    places = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
    by_hand = sum(float((p[i, t] * (p[i, t] / q[i, t]).log()).sum()) for i, t in places) / len(places)
    assert float(kl_to(target, logits, labels)) == pytest.approx(by_hand, rel=1e-5)
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("broken_after", [1, 3, 6])
def test_broken_off_it_ends_in_the_same_weights(tmp_path, broken_after):
    """In the warm-up of the rounding, at a look, and after it."""
    whole, steps = tuned(tmp_path / "whole")
    expected = [(record["step"], record["loss"]) for record in steps]
    _, steps = tuned(tmp_path / "broken")
    found = [(record["step"], record["loss"]) for _, record in zip(range(broken_after), steps, strict=False)]
    steps.close()
    again, steps = tuned(tmp_path / "broken")
    found += [(record["step"], record["loss"]) for record in steps]
    assert found == expected
    for p, q in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)
    assert all(layer.share == 1.0 for layer in layers(again))


def test_it_stops_on_request_and_leaves_the_layers_ternary(tmp_path):
    control = Control(tmp_path)
    model, steps = tuned(tmp_path, control=control)
    next(steps)
    control.request("stop")
    with pytest.raises(RunStopped, match="after step 1 of 8"):
        list(steps)
    assert all(layer.share == 1.0 for layer in layers(model))


def test_a_broken_weight_stops_it_by_name(tmp_path):
    model, steps = tuned(tmp_path)
    next(steps)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match="norm"):
        list(steps)


def test_what_cannot_be_trained_is_refused_before_work(tmp_path):
    kept = Checkpointer(tmp_path / "c")
    with pytest.raises(ValueError, match="convert it first"):
        next(finetune(parent(), shown, CONFIG, pad=0, checkpointer=kept))
    with pytest.raises(ValueError, match="before conversion"):
        next(full_precision(ternary(), shown, CONFIG, pad=0, checkpointer=kept))
    with pytest.raises(ValueError, match="got 0"):
        next(finetune(ternary(), lambda epoch: [], CONFIG, pad=0, checkpointer=kept))
    with pytest.raises(ValueError, match="needs a teacher"):
        next(tuned(tmp_path, replace(CONFIG, distillation=1.0))[1])
    for wrong in ({"epochs": 0}, {"rounding_warmup": 1.5}, {"distillation": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            replace(CONFIG, **wrong)
    assert not list(tmp_path.rglob("step-*"))
