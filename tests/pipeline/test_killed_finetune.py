"""Fine-tuning survives SIGKILL: killed at random moments and begun again, it ends in the same weights, bit for bit."""

import os
import random
import signal
import time

import pytest
from tiny_finetune import finetune_in

KILLS = 4


def newest(folder):
    """The step of the newest checkpoint, 0 without one."""
    return max((int(path.name.removeprefix("step-")) for path in folder.glob("checkpoints/step-*")), default=0)


@pytest.mark.slow
def test_four_kills_change_no_bit_of_the_ternary_model(launch, tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = launch(finetune_in, tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    dice, killed, reached = random.Random(0), tmp_path / "killed", [0]
    for _ in range(KILLS):
        process = launch(finetune_in, killed, 0.05)
        while newest(killed) == reached[-1]:
            time.sleep(0.01)
        time.sleep(dice.uniform(0.0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was through before it could be killed"
        reached.append(newest(killed))
    assert reached == sorted(set(reached)), "every process went on from where the one before was killed"
    last = launch(finetune_in, killed)
    last.join()
    assert last.exitcode == 0
    assert (killed / "weights.safetensors").read_bytes() == (tmp_path / "whole" / "weights.safetensors").read_bytes()
