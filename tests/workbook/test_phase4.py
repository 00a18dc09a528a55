"""What notebooks 40 and 41 join: rows kept apart, quality with its interval, a gate that can fail, the model."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from forgelib.core.artifacts import Artifact
from forgelib.data import vocabulary, write_rows
from forgelib.data.tokenizer import train_bpe
from forgelib.data.traces import procedural_rows
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.quant import TernaryLinear, convert, load_packed
from forgelib.thoughts import add_vocabulary
from forgelib.workbook import phase4
from forgelib.workbook.params import BitnetFinetune, BitnetQuantize, QuietBake, resolve
from forgelib.workbook.phase4 import Measured
from forgelib.workbook.quantize_rows import Found

WORDS = vocabulary("forge-12")
ROUND = resolve(BitnetQuantize, {"profile": "smoke", "wandb_mode": "disabled"})
TUNE = resolve(BitnetFinetune, {"profile": "smoke", "wandb_mode": "disabled"})
RL = {"train_rows": 40, "check_rows": 10, "gate_rows": 30, "thought_tokens": 8, "data": "procedural"}
BAKE = {"rows": 60, "watch_rows": 20, "gate_rows": 60, "headroom_rows": 10, "data": "procedural"}


def artifact(path, name, params, **more):
    return Artifact(path, {"name": name, "params": params, "parents": [], **more}, "0" * 64)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A thinking Cognate in a folder, and the artifacts that it and its baking would have left."""
    monkeypatch.setenv("FORGE_RUNS", str(tmp_path / "runs"))
    tokenizer, _ = train_bpe([row.text for row in procedural_rows(60, WORDS, seed=0)], 320)
    torch.manual_seed(0)
    sizes = {"d_model": 64, "n_layers": 1, "n_heads": 4, "d_ff": 96, "window": 16, "memory_chunk": 8}
    model = CognateForCausalLM(CognateConfig(vocab_size=len(tokenizer), initializer_range=0.1, **sizes)).eval()
    add_vocabulary(model, tokenizer, WORDS)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    baked = artifact(tmp_path, "quietstar-baked", QuietBake(**BAKE).model_dump())
    return SimpleNamespace(
        model=model, tokenizer=tokenizer, baked=baked, trained=artifact(tmp_path, "quietstar-rl", RL | {"seed": 0})
    )


def rows_of(made, p=ROUND):
    return phase4.rows(p, WORDS, made.baked, made.trained)


def test_what_it_tunes_on_and_what_it_is_measured_on_have_no_prompt_in_common(made):
    found = rows_of(made, replace_p(ROUND, gate_rows=50, harder_rows=30))
    tune, gate, harder = ({row.prompt for row in part} for part in (found.tune, found.gate, found.harder))
    assert not tune & gate and not tune & harder and not gate & harder
    assert len(found.harder) == 30
    few = rows_of(made, replace_p(ROUND, gate_rows=20)).gate
    assert len(few) == 20 and {row.strategy for row in few} == set(WORDS.tag_of), "as much of each strategy"
    reinforced = {row.prompt for row in phase4.reinforcement.problems(phase4.asked_of(made.trained), WORDS).train}
    assert reinforced & tune and tune - reinforced, "what was baked and what was reinforced"
    assert [row.prompt for row in found.tune] == [row.prompt for row in rows_of(made).tune], "one order for one seed"


def test_a_model_baked_on_a_file_is_tuned_on_the_rows_of_that_file(made):
    rows = procedural_rows(300, WORDS, seed=9)
    write_rows(made.baked.path / "rows.jsonl", rows)
    own = {row.prompt for row in rows}
    found, problems = rows_of(made), phase4.reinforcement.problems(phase4.asked_of(made.trained), WORDS)
    assert {row.prompt for row in found.tune} - {row.prompt for row in problems.train} <= own
    assert found.gate and {row.prompt for row in found.gate} <= own


def replace_p(p, **changed):
    return type(p)(**{**p.model_dump(), **changed})


def measured(right, n=200):
    correct = {name: [i < share * n for i in range(n)] for name, share in right.items()}
    return Measured(Found(right, {"text": 0.5}, n * len(right)), correct)


def test_the_interval_of_what_is_kept_is_paired_and_holds_it():
    before = measured({"math": 0.9, "code": 0.5})
    assert phase4.drop(before, before) == 0 and phase4.kept_interval(before, before, 0) == (1.0, 1.0), "the same rows"
    after = measured({"math": 0.81, "code": 0.45})
    low, high = phase4.kept_interval(before, after, 0)
    assert low < 0.9 < high and high - low < 0.1 and phase4.drop(before, after) == pytest.approx(0.1)
    nothing = Measured(Found({"math": 0.0}, {"text": 0.5}, 50), {"math": [False] * 50})
    assert phase4.kept_interval(nothing, nothing, 0) is None


@pytest.fixture
def run(made, tmp_path):
    return phase4.open_round(ROUND, [])


def test_rounded_tuned_published_and_read_again(made, run):
    """The way of both notebooks, in small."""
    found, asked = rows_of(made), phase4.asked_of(made.trained)
    model, parent = copy.deepcopy(made.model), made.model
    before = phase4.measure(model, made.tokenizer, WORDS, found, asked)
    assert set(before.correct) == {*{row.strategy for row in found.gate}, phase4.HARDER}
    assert before.found.asked == sum(map(len, before.correct.values())) == 30
    records = list(phase4.round_steps(model, phase4.calibration(made.tokenizer, found, 2), ROUND, run))
    after = phase4.measure(model, made.tokenizer, WORDS, found, asked)
    records[3]["put_back"] = True
    kept = phase4.publish_rounded(run, records, before, after, [])
    assert phase4.rounded(ROUND).digest == kept.digest
    assert phase4.earlier_quality(kept) == (before, after)
    model = phase4.as_rounded(copy.deepcopy(parent), kept)
    names = {name for name, m in model.named_modules() if isinstance(m, TernaryLinear)}
    assert names == {record["name"] for record in records} - {records[3]["name"]}
    tuning = phase4.open_tune(TUNE, kept, kept)
    some = phase4.shown(made.tokenizer, found, TUNE)
    steps = list(phase4.tune_steps(model, parent, made.tokenizer, some, TUNE, tuning))
    twin, plain = phase4.control_steps(parent, made.tokenizer, some, TUNE, tuning)
    journal = list(plain)
    assert len(steps) == len(journal) == phase4.n_steps(TUNE, some) == 8
    assert phase4.control_journal(tuning) == journal
    _, again = phase4.control_steps(parent, made.tokenizer, some, TUNE, tuning)
    assert list(again) == [] and phase4.control_journal(tuning) == journal, "finished: its curve is still there"
    assert not any(isinstance(m, TernaryLinear) for m in twin.modules())
    result = phase4.publish_ternary(tuning, model, made.tokenizer, {"before": before, "ternary": after}, [])
    stored = AutoModelForCausalLM.from_pretrained(result.path / "model").state_dict()
    assert all(torch.equal(t, stored[name]) for name, t in model.state_dict().items())
    assert set(json.loads((result.path / phase4.LAYERS).read_text())) == names
    packed = load_packed(result.path / "packed")
    name = sorted(names)[0]
    torch.testing.assert_close(packed.get_submodule(name).weight, model.get_submodule(name).pack().weight)
    again = phase4.as_rounded(copy.deepcopy(parent), kept)
    assert list(phase4.tune_steps(again, parent, made.tokenizer, some, TUNE, tuning)) == [], "finished"
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters(), strict=True))


def test_a_run_without_training_is_another_run_than_one_with(made, run):
    """0.2 of the quality was lost; whether that calls for training is for `finetune_above` to say."""
    before, after = measured({"math": 0.5}), measured({"math": 0.4})
    kept = phase4.publish_rounded(run, [], before, after, [])
    often, never = replace_p(TUNE, finetune_above=0.1), replace_p(TUNE, finetune_above=0.3)
    assert phase4.called_for(often, kept) and not phase4.called_for(never, kept)
    keys = [phase4.open_tune(p, kept, kept).key for p in (often, never, replace_p(TUNE, finetune_above=-1.0))]
    assert keys[0] == keys[2] != keys[1]


def test_steps_are_counted_on_the_rows_there_are(made):
    many = replace_p(TUNE, tune_rows=9999)
    found = rows_of(made)
    assert phase4.n_steps(many, phase4.shown(made.tokenizer, found, many)) == many.epochs * -(-len(found.tune) // 8)


def test_the_gate_fails_where_it_must(made, monkeypatch):
    model = copy.deepcopy(made.model)
    before, worse = measured({"math": 0.9, "code": 0.5}), measured({"math": 0.8, "code": 0.45})
    convert(model)
    sizes = phase4.packed_bytes(model)
    monkeypatch.setattr(
        phase4.reinforcement, "surely_failed", lambda verdict: ["causal use"] if verdict == "theater" else []
    )
    checks = phase4.gate_checks(model, {"before": before, "ternary": before}, "", sizes, TUNE)
    assert len(checks) == 4 and all(check.passed for check in checks)
    found = {"before": before, "ternary": worse, "control": before}
    small = {"float32": 5, "stored": 1}
    strict = replace_p(TUNE, sparsity_threshold=0.5)
    failed = phase4.gate_checks(model, found, "theater", small, strict)
    assert not any(check.passed for check in failed)
    assert (failed[3].measured, failed[3].note) == (1.0, "causal use")
    assert failed[0].control == {"full precision, as long": 1.0} and failed[0].interval[0] < failed[0].measured


def test_bytes_of_the_ternary_layers_are_counted_from_a_file(made):
    model = copy.deepcopy(made.model)
    convert(model)
    sizes = phase4.packed_bytes(model)
    weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, TernaryLinear))
    biases = sum(m.bias.numel() for m in model.modules() if isinstance(m, TernaryLinear) and m.bias is not None)
    assert sizes["float32"] == 4 * (weights + biases) and weights / 5 < sizes["stored"] < weights / 5 * 1.6
