"""Baking traces: what carries loss, what is looked at, and an end that is the same however often it was broken off."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from forgelib.core.health import NonFiniteError
from forgelib.core.loop import Checkpointer, Control, RunStopped
from forgelib.data import vocabulary
from forgelib.data.tokenizer import train_bpe
from forgelib.data.traces import procedural_rows
from forgelib.evaluate.reasoning import Reasoned
from forgelib.phases import bake as bake_module
from forgelib.phases.bake import IGNORED, BakeConfig, bake, encode, epoch_order, padded, shown_in
from forgelib.thoughts import add_vocabulary

WORDS = vocabulary("forge-12")
ROWS = procedural_rows(200, WORDS, seed=0, part="train")
CONFIG = BakeConfig(seed=0, epochs=2, looks=2, batch_size=16, muon_lr=0.01, adamw_lr=0.003, max_new_tokens=8)


def small():
    tokenizer, _ = train_bpe([row.text for row in ROWS], 320)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
    )
    add_vocabulary(model, tokenizer, WORDS)
    return model, tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return small()[1]


def baked(tmp_path, n=32, config=CONFIG, watch=ROWS[:10], **kwargs):
    model, tokenizer = small()
    checkpointer = Checkpointer(tmp_path / "checkpoints", every_steps=1)
    return model, bake(model, tokenizer, WORDS, ROWS[:n], watch, config, checkpointer=checkpointer, **kwargs)


def with_slip(strategy):
    return next(row for row in procedural_rows(50, WORDS, seed=0, strategies=[strategy]) if slips(row))


def slips(row):
    from forgelib.data.trace_checks import equations

    return [equation for equation, true in equations(row.reasoning) if not true]


@pytest.mark.parametrize("row", ROWS[:10], ids=lambda row: row.strategy)
def test_loss_is_on_trace_and_answer_only(tokenizer, row):
    row = replace(row, reasoning=row.reasoning) if not slips(row) else ROWS[0]
    ids, labels = encode(tokenizer, [row], 512)[0]
    told = [token for token in labels if token != IGNORED]
    assert tokenizer.decode(ids) == row.text + tokenizer.eos_token
    assert tokenizer.decode(told) == f" {row.reasoning} {row.answer}{tokenizer.eos_token}"
    assert labels[: len(ids) - len(told)] == [IGNORED] * (len(ids) - len(told))
    ids, labels = encode(tokenizer, [row], 512, direct=True)[0]
    assert tokenizer.decode([t for t in labels if t != IGNORED]) == f" {row.answer}{tokenizer.eos_token}"
    assert tokenizer.decode(ids) == f"{row.direct_prompt} {row.answer}{tokenizer.eos_token}"
    assert row.direct_prompt == row.prompt[: -len("Answer:")] + "Answer at once:"


@pytest.mark.parametrize("strategy", ["self_doubt", "self_correction"])
def test_no_loss_on_a_slip(tokenizer, strategy):
    row = with_slip(strategy)
    ids, labels = encode(tokenizer, [row], 512)[0]
    masked = [t for t, label in zip(ids, labels, strict=True) if label == IGNORED]
    prompt = tokenizer(row.prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(masked[len(prompt) :]).replace(" ", "") == "".join(slips(row))


def test_a_row_that_is_too_long_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"a row of procedural has \d+ tokens, max_tokens is 9"):
        encode(tokenizer, ROWS[:1], 9)


def test_an_epoch_holds_every_row_once_in_an_order_of_its_own(tokenizer):
    encoded = encode(tokenizer, ROWS, 512)
    orders = [epoch_order(encoded, CONFIG, epoch) for epoch in (0, 1)]
    for order in orders:
        assert sorted(i for batch in order for i in batch) == list(range(len(ROWS)))
        assert all(len(batch) <= CONFIG.batch_size for batch in order)
    assert orders[0] != orders[1] and orders[0] == epoch_order(encoded, CONFIG, 0)
    sizes = [padded([encoded[i] for i in batch], 0)[0].shape for batch in orders[0]]
    assert sum(rows * longest for rows, longest in sizes) < 1.5 * sum(len(ids) for ids, _ in encoded)
    assert all(longest % bake_module.PADDED_TO == 0 for _, longest in sizes), "few shapes"


def test_which_rows_go_without_their_thought_is_drawn_anew_in_every_epoch(tokenizer):
    both = list(zip(encode(tokenizer, ROWS, 512), encode(tokenizer, ROWS, 512, True), strict=True))
    config = replace(CONFIG, direct_share=0.25)
    direct = [[shown == pair[1] for shown, pair in zip(shown_in(e, both, config), both, strict=True)] for e in range(3)]
    assert all(0.15 < sum(one) / len(ROWS) < 0.35 for one in direct) and direct[0] != direct[1] != direct[2]
    assert shown_in(1, both, config) == shown_in(1, both, config)
    assert shown_in(0, both, replace(CONFIG, direct_share=0.0)) == [thought for thought, _ in both]


def test_padding_changes_no_loss(tokenizer):
    model, _ = small()
    rows = sorted(encode(tokenizer, ROWS[:4], 512), key=lambda row: len(row[0]))
    model.eval()
    for rows_together in (rows, rows[:1]):
        ids, labels = padded(rows_together, tokenizer.eos_token_id)
        logits = model(input_ids=ids).logits
        alone = model(input_ids=torch.tensor([rows[0][0]])).logits
        assert torch.allclose(logits[:1, : alone.shape[1]], alone, atol=1e-5)
        assert bool((labels[:, len(rows_together[-1][0]) :] == IGNORED).all())


def test_the_loss_falls_and_the_looks_hold_the_metrics(tmp_path):
    _, steps = baked(tmp_path, n=64, config=replace(CONFIG, epochs=4, looks=4))
    records = list(steps)
    assert len(records) == 16 and records[-1]["loss"] < 0.85 * records[0]["loss"]
    looked = [record for record in records if "accuracy_overall" in record]
    assert [record["epoch"] for record in looked] == [1.0, 2.0, 3.0, 4.0]
    names = {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second"}
    assert set(records[0]) == names
    per_strategy = {f"accuracy_{row.strategy}" for row in ROWS[:10]}
    usage = {f"token_usage_{name}" for name in ("thinking", "step", "mece", "falsify", "doubt")}
    assert set(looked[0]) == names | per_strategy | usage | {"accuracy_overall", "convergence_progress"}
    assert 0 <= looked[0]["convergence_progress"] < 1


def test_it_ends_at_the_second_look_in_a_row_that_reaches_the_targets(tmp_path, monkeypatch):
    """One look at few rows is at every target by luck now and then. Broken off between the two, it ends there, too."""
    progress = [0.99, 1.0, 0.99, 1.0, 1.0, 1.0]
    config, wanted = replace(CONFIG, epochs=6, looks=6), [p for look in progress[:5] for p in (None, look)]
    for name, broken_after in (("whole", 0), ("broken", 9)):
        looks = iter(progress)
        monkeypatch.setattr(bake_module, "look", lambda *_, looks=looks: {"convergence_progress": next(looks)})
        _, steps = baked(tmp_path / name, config=config)
        found = [record.get("convergence_progress") for _, record in zip(range(broken_after), steps, strict=False)]
        steps.close()
        _, steps = baked(tmp_path / name, config=config)
        assert found + [record.get("convergence_progress") for record in steps] == wanted


def test_the_average_is_looked_at_and_kept(tmp_path, monkeypatch):
    seen = []

    def look(model, *_):
        seen.append([p.detach().clone() for p in model.parameters()])
        return {}

    monkeypatch.setattr(bake_module, "look", look)
    model, steps = baked(tmp_path, config=replace(CONFIG, epochs=1, looks=1))
    for record in steps:
        own, last = [p.detach().clone() for p in model.parameters()], record["step"]
    assert last == 1 and any(not torch.equal(p, q) for p, q in zip(own, seen[0], strict=True))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), seen[0], strict=True))


def test_progress_is_the_farthest_target(tmp_path):
    model, tokenizer = small()
    nothing_asked = replace(CONFIG, target=0.0, strategy_target=0.0)
    assert bake_module.look(model, tokenizer, WORDS, ROWS[:10], nothing_asked)["convergence_progress"] == 1.0
    measured = bake_module.look(model, tokenizer, WORDS, ROWS[:10], replace(CONFIG, target=1e-9))
    assert measured["accuracy_overall"] == 0.0 == measured["convergence_progress"]


@pytest.mark.parametrize("right, n, surely", [(17, 20, True), (16, 20, False), (160, 200, True), (20, 20, True)])
def test_a_target_counts_as_reached_where_it_is_passed_by_more_than_a_standard_error(monkeypatch, right, n, surely):
    """16 of 20 are .8, above .765, and come by with .7 in one look of ten."""
    rows = procedural_rows(n, WORDS, seed=0, strategies=["mece"])
    correct = np.arange(n) < right
    answered = Reasoned(rows, [""] * n, [""] * n, [WORDS.read("")] * n, correct)
    monkeypatch.setattr(bake_module, "reason", lambda *_, **__: answered)
    measured = bake_module.look(None, None, WORDS, rows, replace(CONFIG, target=0.765, strategy_target=0.765))
    assert measured["accuracy_mece"] == right / n and (measured["convergence_progress"] == 1.0) == surely


@pytest.mark.parametrize("broken_after", [1, 3])
def test_broken_off_it_ends_in_the_same_weights(tmp_path, broken_after):
    whole, steps = baked(tmp_path / "whole")
    expected = [(record["step"], record["loss"]) for record in steps]
    _, steps = baked(tmp_path / "broken")
    found = [(record["step"], record["loss"]) for _, record in zip(range(broken_after), steps, strict=False)]
    steps.close()
    again, steps = baked(tmp_path / "broken")
    found += [(record["step"], record["loss"]) for record in steps]
    assert found == expected
    for p, q in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


def test_it_stops_on_request(tmp_path):
    control = Control(tmp_path)
    _, steps = baked(tmp_path, control=control)
    next(steps)
    control.request("stop")
    with pytest.raises(RunStopped, match="stopped on request after step 1 of 4"):
        list(steps)


def test_a_broken_weight_stops_it_by_name(tmp_path):
    model, steps = baked(tmp_path)
    next(steps)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"layers\.1\.mlp\.up_proj"):
        list(steps)


def test_nothing_to_bake_is_refused_before_work(tmp_path):
    with pytest.raises(ValueError, match="got 0 and 10"):
        list(baked(tmp_path, n=0)[1])
    with pytest.raises(ValueError, match="at least 1"):
        list(baked(tmp_path, config=replace(CONFIG, epochs=0))[1])
