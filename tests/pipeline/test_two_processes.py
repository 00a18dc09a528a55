"""Two processes with half the rows each make the training of one process with all rows; only the first writes."""

import socket
from pathlib import Path

import pytest
import tiny_run
import torch
from safetensors.torch import load_file

from forgelib.core.loop import Checkpointer


def start_two(launch, folder: Path, steps: int) -> None:
    """Run both to the end. On the CPU `accelerate launch` starts one process, however many are asked for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [launch(tiny_run.run_rank, folder, steps, rank, 2, port) for rank in (0, 1)]
    for process in processes:
        process.join(120)
        assert process.exitcode == 0


@pytest.mark.slow
def test_two_processes_make_the_training_of_one(tmp_path, launch):
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    tiny_run.run_shared(one, 12)
    start_two(launch, two, 7)
    stored = Checkpointer(two).latest()
    assert stored["step"] == 7 and len(stored["state"]["rng"]) == 2, "each process has its own random numbers"
    start_two(launch, two, 12)
    assert sorted(path.name for path in two.glob("step-*")) == ["step-000000010", "step-000000012"]
    expected = load_file(one / "final-0.safetensors")
    first, second = (load_file(two / f"final-{rank}.safetensors") for rank in (0, 1))
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=0, atol=1e-5)
        assert torch.equal(first[name], second[name]), "the processes drifted apart"
