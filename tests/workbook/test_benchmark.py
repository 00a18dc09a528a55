"""What notebook 42 joins: bytes from files, turns that are fair, a gate that can fail, a table that hides nothing."""

import copy
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from forgelib.core.artifacts import Artifact
from forgelib.core.gates import Check, Gate
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.phases.decoding import Decoded
from forgelib.quant import convert, native, pack_model, save_packed
from forgelib.workbook import benchmark, phase4
from forgelib.workbook.benchmark import CONTROL, FAST, PLAIN, Stage, Timed
from forgelib.workbook.params import BitnetBenchmark, ParameterError, QuietTheater, resolve
from forgelib.workbook.phase4 import Measured
from forgelib.workbook.quantize_rows import Found

LAPTOP = BitnetBenchmark()
PROMPT = torch.tensor([[5, 6, 7]])


@pytest.fixture(scope="module")
def pair():
    """A Cognate whose end of text is a token that it writes, and the same one packed."""
    torch.manual_seed(0)
    sizes = {"d_model": 64, "n_layers": 1, "n_heads": 4, "d_ff": 96, "window": 16, "memory_chunk": 8}
    model = CognateForCausalLM(CognateConfig(vocab_size=50, initializer_range=0.1, **sizes)).eval()
    written = benchmark.by_torch(model)(PROMPT, 12, ()).ids.tolist()
    model.config.eos_token_id = model.generation_config.eos_token_id = written[3]
    packed = copy.deepcopy(model)
    convert(packed)
    return SimpleNamespace(model=model, packed=pack_model(packed), written=written)


def test_bytes_are_those_of_the_files(pair, tmp_path):
    pair.model.save_pretrained(tmp_path / "model")
    save_packed(pair.packed, tmp_path / "packed")
    layers, whole = benchmark.file_rows(tmp_path / "model", tmp_path / "packed", pair.packed)
    assert layers["packed"] == (tmp_path / "packed" / "ternary.safetensors").stat().st_size
    assert whole["packed"] == sum(f.stat().st_size for f in (tmp_path / "packed").iterdir())
    linears = [m for name, m in pair.model.named_modules() if name in json.loads(index(tmp_path))["layers"]]
    assert layers["float32"] == sum(4 * t.numel() for m in linears for t in m.parameters())
    (tmp_path / "packed" / "tokenizer.json").write_text("not the model's")
    assert benchmark.weight_bytes(tmp_path / "packed") == whole["packed"]
    (tmp_path / "packed" / "more.safetensors").write_bytes(b"x" * 1000)
    assert benchmark.weight_bytes(tmp_path / "packed") == whole["packed"] + 1000


def index(folder):
    return (folder / "packed" / "packed.json").read_text()


def test_memory_counts_tied_weights_once_and_the_decoder(pair):
    found = benchmark.memory_rows(pair.model, pair.packed)
    parameters = sum(4 * p.numel() for p in pair.model.parameters())
    buffers = sum(t.nbytes for name, t in pair.model.state_dict().items() if name not in dict(named(pair.model)))
    assert found["float32 model"] == parameters + buffers and found["packed model"] < parameters / 2
    assert ("native decoder, beside the packed model" in found) == (native.kernel() is not None)


def named(model):
    return model.named_parameters(remove_duplicate=False)


def test_every_way_writes_the_same_as_many_as_asked_or_to_the_end(pair):
    ways, end = benchmark.ways(pair.model, pair.packed), [pair.model.config.eos_token_id]
    assert next(iter(ways)) == PLAIN and list(ways)[-1] == FAST
    for name in (PLAIN, CONTROL):
        assert ways[name](PROMPT, 12, ()).ids.tolist() == pair.written, "the end of text ends nothing"
        stopped = ways[name](PROMPT, 12, end).ids.tolist()
        assert stopped == pair.written[: pair.written.index(end[0]) + 1]
    assert all(len(write(PROMPT, 12, ()).ids) == 12 for write in ways.values())


def clockwork(monkeypatch, seconds):
    """A clock that each way moves by its own seconds, in the order of the calls."""
    now, calls = [0.0], []
    monkeypatch.setattr(benchmark.time, "thread_time", lambda: now[0])

    def way(name):
        times = itertools.cycle(seconds[name])

        def write(input_ids, max_new_tokens, end):
            calls.append((name, int(input_ids[0, 0]), torch.get_num_threads()))
            now[0] += next(times)
            return Decoded(torch.zeros(max_new_tokens), f"by {name}", (2, 4))

        return write

    return {name: way(name) for name in seconds}, calls


def test_ways_take_turns_on_one_thread_and_the_first_round_does_not_count(monkeypatch):
    before = torch.get_num_threads()
    ways, calls = clockwork(monkeypatch, {PLAIN: [9.0, 4.0, 2.0], FAST: [9.0, 1.0, 1.0]})
    torch.set_num_threads(2)
    try:
        taken = benchmark.in_turns(ways, [torch.tensor([[0]]), torch.tensor([[1]])], 8, 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert [name for name, *_ in calls] == [PLAIN, FAST] * 3
    assert [prompt for _, prompt, _ in calls] == [0, 0, 0, 0, 1, 1] and {n for *_, n in calls} == {1}
    assert taken[PLAIN].seconds == [4.0, 2.0] and taken[FAST].rates().tolist() == [8.0, 8.0]
    assert benchmark.times_as_fast(taken, FAST).tolist() == [4.0, 2.0]
    row = benchmark.speed_rows(taken, taken)[1]
    assert (row["tokens/s"], row["times as fast"], row["ms to an answer"]) == (8.0, 3.0, 1000.0)
    assert row["cycles a token"] == 3.0 and row["decoded by"] == f"by {FAST}"


def test_every_model_is_decoded_both_ways(pair):
    some = {"parent": Stage(pair.model, None, None, True, []), "packed": Stage(pair.packed, None, None, True, [])}
    taken = benchmark.speeds_of_all(some, [PROMPT], 3, 2)
    assert list(taken) == ["parent, torch", "parent, native", "packed, torch", "packed, native"]
    assert all(one.tokens == [3, 3] and min(one.seconds) > 0 for one in taken.values())
    if native.kernel() is not None:
        assert [one.how.split(",")[0] for one in taken.values()] == ["torch", "native"] * 2


def test_quality_of_other_rows_is_refused(tmp_path):
    one = {"found": {"right": {"a": 0.5}, "probability": {}, "asked": 2}, "correct": {"a": [True, False]}}
    (tmp_path / phase4.QUALITY).write_text(json.dumps({"before": one, "ternary": one}))
    found = Artifact(tmp_path, {"params": {"gate_rows": 200, "harder_rows": 100}}, "0" * 64)
    assert benchmark.earlier(found, LAPTOP)["ternary"].correct == {"a": [True, False]}
    with pytest.raises(ParameterError, match="harder_rows = 50: 41_bitnet_finetune measured 100"):
        benchmark.earlier(found, BitnetBenchmark(harder_rows=50))


@pytest.mark.parametrize("profile", ["smoke", "laptop", "gpu6gb", "full"])
def test_the_trial_is_the_one_of_notebook_32(profile):
    given = {"profile": profile, "seed": 3, "data": "procedural"}
    assert benchmark.trial_parameters(resolve(BitnetBenchmark, given)) == resolve(QuietTheater, given)
    smaller = benchmark.trial_parameters(resolve(BitnetBenchmark, given | {"trial_thoughts": 3}))
    assert smaller.thoughts == 3


def test_a_trial_whose_sizes_do_not_fit_is_refused():
    with pytest.raises(ParameterError, match="trial_thought_problems <= trial_problems: got 100, 1000"):
        resolve(BitnetBenchmark, {"profile": "laptop", "trial_problems": 300})


def test_exports_say_what_they_can_write(pair):
    said = benchmark.refusals(pair.packed)
    assert "no architecture 'cognate'" in said["bitnet"] and "'cognate' is not written" in said["gguf"]
    sizes = {"vocab_size": 50, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)).eval()
    convert(llama)
    assert set(benchmark.refusals(pack_model(llama)).values()) == {"can be written"}


def measured(right, n=200):
    correct = {name: [i < share * n for i in range(n)] for name, share in right.items()}
    return Measured(Found(right, {"text": 0.5}, n * len(right)), correct)


def timed(*rates):
    return Timed([1 / rate for rate in rates], [1] * len(rates), 0.0, "")


def test_the_gate_fails_where_it_must(pair):
    before, worse = measured({"math": 0.9, "code": 0.5}), measured({"math": 0.8, "code": 0.4})
    assert benchmark.differing(before, worse) == {"math": 20, "code": 20}
    fast = {PLAIN: timed(10, 20, 10), CONTROL: timed(15, 30, 15), FAST: timed(40, 60, 30)}
    small, green = {"float32": 70, "stored": 10}, verdict("passed")
    found = {"before": before, "ternary": worse, "control": before, "packed": before}
    checks = benchmark.gate_checks(pair.packed, fast, small, found, green, LAPTOP)
    assert len(checks) == 5 and all(check.passed for check in checks)
    assert checks[0].measured == 3.0 and checks[0].control == {CONTROL: 1.5} and checks[0].interval == (3.0, 4.0)
    assert checks[2].control == {"not packed": pytest.approx(1.2 / 1.4), "full precision, as long": 1.0}
    slow, red = fast | {FAST: timed(10, 30, 10)}, verdict("failed")
    strict = BitnetBenchmark(sparsity_threshold=0.5)
    big = {"float32": 50, "stored": 10}
    failed = benchmark.gate_checks(pair.packed, slow, big, found | {"packed": worse}, red, strict)
    assert not any(check.passed for check in failed)
    assert failed[3].note == "failed: causal use" and failed[2].interval[0] < failed[2].measured


def verdict(outcome):
    """Stands for a trial of two tests."""
    own = 0.6 if outcome == "passed" else 0.1
    tests = Gate("anti-theater", [Check("divergence", 0.9, 0.3), Check("causal use", own, 0.3)])
    return SimpleNamespace(gate=lambda: tests)


def test_the_last_table_shows_every_model_as_it_is(pair, tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1234)
    asked = []

    def answered(thinker, rows, thoughts):
        asked.append((thinker, thoughts))
        return SimpleNamespace(right=np.array([thoughts, True]))

    monkeypatch.setattr(benchmark, "answered", answered)
    monkeypatch.setattr(benchmark.reinforcement, "thinker", lambda model, *_, baked: (model, baked))
    green = Gate("One", [Check("a", 1.0, 0.0)]).verdict()
    red = Gate("Two", [Check("b", 0.0, 1.0), Check("c", 2.0, 1.0), Check("d", None, 1.0)]).verdict()
    some = {
        "champion": Stage("first", None, tmp_path, False, [green]),
        "thinking": Stage("second", None, tmp_path, True, [green, red]),
    }
    taken = {"champion, torch": timed(10, 30, 20), "champion, native": timed(70, 90, 80)}
    taken |= {"thinking, torch": timed(1, 2, 3), "thinking, native": timed(4, 5, 6)}
    first, second = benchmark.final_rows(some, taken, [], None, None)
    assert asked == [(("first", False), False), (("second", True), True)], "thoughts where it has them"
    assert (first["right"], second["right"]) == (0.5, 1.0) and first["low"] < 0.5 < first["high"]
    assert (first["tokens/s, torch"], first["tokens/s, native"], first["bytes on disk"]) == (20, 80, 1234)
    assert (first["gates passed"], first["not passed"]) == ("1 of 1", "")
    assert (second["gates passed"], second["not passed"]) == ("1 of 2", "Two: b; d")
