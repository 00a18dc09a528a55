"""Notebook 11 under a launcher: two processes train one model, and one of them keeps the journal and publishes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from forgelib.core.tracking import read_journal

SCRIPT = Path(__file__).with_name("notebook_process.py")
KNOBS = ("specialist=memory", "trunk_steps=12", "steps=8", "accuracy_samples=10")
TWO = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone")


def train(runs: Path, launcher: tuple[str, ...] = ()) -> None:
    environment = {**os.environ, "FORGE_RUNS": str(runs), "FORGE_PROFILE": "smoke", "OMP_NUM_THREADS": "1"}
    environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, *launcher, str(SCRIPT), "11_cognate_train", *KNOBS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_launcher_trains_the_same_model_with_two_processes(tmp_path):
    train(tmp_path / "one")
    train(tmp_path / "two", TWO)
    for part in ("trunk", "memory"):
        alone, together = (list((tmp_path / how / "artifacts").glob(f"cognate-{part}-*")) for how in ("one", "two"))
        assert len(alone) == len(together) == 1, "one artifact, published by one process"
        journals = [read_journal(folders[0] / "metrics.jsonl") for folders in (alone, together)]
        assert [r["step"] for r in journals[0]] == [r["step"] for r in journals[1]], "every step once"
        losses = [[r["loss"] for r in journal] for journal in journals]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)
        weights = [load_file(folders[0] / "model" / "model.safetensors") for folders in (alone, together)]
        for name, value in weights[0].items():  # bfloat16 sums in another order: 0.02; nothing shared: 0.5
            assert (weights[1][name] - value).norm() <= 0.1 * value.norm() + 1e-3, name
