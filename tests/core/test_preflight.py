"""What cannot fit is refused before it starts, and the forecast is held against what was really used."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from forgelib.core import preflight
from forgelib.core.preflight import DoesNotFit, Forecast, Meter, forecast, peak_memory, refusals, require

SIZES = {"n_parameters": 10**6, "tokens_per_step": 1024, "d_model": 128, "layer_applications": 20, "vocab_size": 2000}


def test_the_parts_are_what_they_say():
    expected = forecast(**SIZES)
    assert expected.parts["weights and gradients"] == 8 * 10**6
    assert expected.parts["optimizer and weight average"] == 12 * 10**6
    assert expected.parts["logits and their gradient"] == 3 * 4 * 1024 * 2000
    assert expected.memory_bytes == sum(expected.parts.values())
    assert expected.disk_bytes == 3 * 16 * 10**6 + 4 * 10**6, "two checkpoints, one in the making, and the result"
    assert {row["what"]: row["MB"] for row in expected.rows()}["memory in all"] == round(expected.memory_bytes / 1e6, 1)


@pytest.mark.parametrize("knob", ["n_parameters", "tokens_per_step", "d_model", "layer_applications", "vocab_size"])
def test_more_of_anything_needs_more(knob):
    assert forecast(**{**SIZES, knob: 2 * SIZES[knob]}).memory_bytes > forecast(**SIZES).memory_bytes


def test_logits_never_count_for_more_than_exist_at_once():
    wide = {**SIZES, "vocab_size": 50_257, "tokens_per_step": 65_536}
    assert forecast(**wide, logits_at_once=10**6).parts["logits and their gradient"] == 12 * 10**6


def test_what_fits_is_not_refused(tmp_path):
    small = Forecast({"weights": 10**6}, 10**6)
    assert refusals(small, tmp_path / "not" / "yet" / "there") == []


def test_what_is_too_large_for_this_machine_is_refused_in_words(tmp_path):
    """A million million parameters, with nothing pretended about the machine."""
    disk, memory = refusals(forecast(**{**SIZES, "n_parameters": 10**12}), tmp_path / "run")
    assert str(tmp_path) in disk and "GB free" in disk and "52000.0 GB" in disk and "FORGE_RUNS" in disk
    with pytest.raises(DoesNotFit, match=r"52000\.0 GB.*; cpu has.*20001\.1 GB"):
        require(forecast(**{**SIZES, "n_parameters": 10**12}), tmp_path / "run")
    assert memory.startswith("cpu has") and "20001.1 GB" in memory and "lower tokens_per_step" in memory


def test_the_limit_is_what_is_free(tmp_path, monkeypatch):
    expected = Forecast({"all": 5 * 10**9}, 7 * 10**9)
    usage = preflight.shutil.disk_usage(tmp_path)
    for disk, memory, problems in ((7, 5, 0), (6.9, 5, 1), (7, 4.9, 1), (1, 1, 2)):
        free_disk, free_memory = usage._replace(free=int(disk * 1e9)), int(memory * 1e9)
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder, free=free_disk: free)
        available = psutil.virtual_memory()._replace(available=free_memory)
        monkeypatch.setattr(preflight.psutil, "virtual_memory", lambda available=available: available)
        assert len(refusals(expected, tmp_path)) == problems


def test_the_meter_measures_what_the_block_took(tmp_path):
    (tmp_path / "runs").mkdir()
    before = peak_memory()
    with Meter(tmp_path / "runs") as meter:
        (tmp_path / "runs" / "file").write_bytes(bytes(12_345))
        ballast = bytearray(before + 200_000_000 - psutil.Process().memory_info().rss)
        ballast[::4096] = b"x" * len(ballast[::4096])
    assert meter.disk_bytes == 12_345 and meter.seconds > 0
    assert meter.peak_bytes - before == pytest.approx(200_000_000, rel=0.1)
    rows = meter.compare(Forecast({"a": 10**6, "b": 10**6}, 10**6))
    assert rows[0]["what"] == "memory" and rows[0]["forecast MB"] == 2.0
    assert rows[1] == {"what": "disk", "forecast MB": 1.0, "measured MB": 0.0}


TRAINING = """
import json, sys, tempfile
from pathlib import Path
import torch
from forgelib.core import preflight, sizing
from forgelib.core.loop import Checkpointer
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.phases.cognate import PretrainConfig, pretrain
from forgelib.phases.curriculum import Stage

torch.set_num_threads(1)
shape = CognateConfig(vocab_size=2000, d_model=128, n_layers=4, n_heads=4, d_ff=344, window=32, memory_chunk=32,
                      memory_layers=[1, 3], recursion_layers=1, max_cycles=3)
model, found = CognateForCausalLM(shape), []
for tokens in (256, 1024):
    expected = preflight.forecast(
        n_parameters=sizing.count_parameters(model), tokens_per_step=tokens, d_model=128, vocab_size=2000,
        layer_applications=shape.n_layers + shape.recursion_layers * (shape.n_micro_steps + 1) * shape.max_cycles)
    pool = torch.randint(0, 2000, (16, 64), dtype=torch.int32)
    stages = (Stage("only", 2, 64, tokens // 64, 3, {"math": 1.0}, {"math": pool}),)
    folder = Path(sys.argv[1]) / str(tokens)
    with preflight.Meter(folder) as meter:
        for _ in pretrain(model, PretrainConfig(stages, 0, 1e-3, 1e-3), checkpointer=Checkpointer(folder, 1)):
            pass
    found.append([[expected.memory_bytes, meter.peak_bytes], [expected.disk_bytes, meter.disk_bytes]])
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_forecast_of_a_real_training_is_near_the_measurement(tmp_path):
    """The laptop's model; memory within a factor of 1.5, and so is its growth with the tokens of a step."""
    done = subprocess.run([sys.executable, "-c", TRAINING, str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    (small, _), (large, disk) = json.loads(done.stdout.splitlines()[-1])
    growth = [after - before for before, after in zip(small, large, strict=True)]
    for forecast_bytes, measured in (small, large, growth):
        assert 1 / 1.5 < measured / forecast_bytes < 1.5, (small, large, growth)
    assert 0.5 < disk[1] / disk[0] <= 1.0, "two checkpoints lie there, the third and the result come and go"


def test_the_training_folder_is_the_only_thing_counted(tmp_path):
    Path(tmp_path, "elsewhere").write_bytes(bytes(1000))
    with Meter(tmp_path / "runs") as meter:
        pass
    assert meter.disk_bytes == 0
