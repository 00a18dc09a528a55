"""Two processes with half the rows each make the training of one process with all rows; only the first writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import torch
from safetensors.torch import load_file

from forgelib.core.loop import Checkpointer


def launch_two(folder: Path, steps: int) -> None:
    """Started by torch's launcher: on a machine without a GPU `accelerate launch` starts one process, however many."""
    launcher = "-m torch.distributed.run --nnodes 1 --nproc_per_node 2 --standalone --local_addr 127.0.0.1"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *launcher.split(), tiny_run.__file__, str(folder), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_make_the_training_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    tiny_run.run_shared(one, 12)
    launch_two(two, 7)
    stored = Checkpointer(two).latest()
    assert stored["step"] == 7 and len(stored["state"]["rng"]) == 2, "each process has its own random numbers"
    launch_two(two, 12)
    assert sorted(path.name for path in two.glob("step-*")) == ["step-000000010", "step-000000012"]
    expected = load_file(one / "final-0.safetensors")
    first, second = (load_file(two / f"final-{rank}.safetensors") for rank in (0, 1))
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-5)
        assert torch.equal(first[name], second[name]), "the processes drifted apart"
