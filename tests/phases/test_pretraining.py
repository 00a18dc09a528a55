"""Pre-training as an iterator: it learns, it stops where it should, and it goes on as if nothing had happened."""

from dataclasses import replace

import pytest
import torch

from forgelib.core.health import NonFiniteError
from forgelib.core.loop import Checkpointer, Control
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.phases.cognate import PretrainConfig, RunStopped, pretrain
from forgelib.phases.curriculum import SPECIALIST_CYCLES, Stage, specialist_stages, trunk_stages


def tiny_model() -> CognateForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "window": 4, "memory_chunk": 4}
    return CognateForCausalLM(CognateConfig(**sizes, memory_layers=[1], recursion_layers=1))


def counting(n: int = 40, length: int = 12) -> torch.Tensor:
    """Texts that count upwards from a random number: easy to learn."""
    starts = torch.randint(0, 20, (n, 1), generator=torch.Generator().manual_seed(1))
    return ((starts + torch.arange(length)) % 20).int()


def config(steps: tuple[int, ...] = (12, 8), cycles: tuple[int, ...] = (3, 2)) -> PretrainConfig:
    stages = tuple(
        Stage(f"stage {i}", n, 12, 4, depth, {"math": 1.0}, {"math": counting()})
        for i, (n, depth) in enumerate(zip(steps, cycles, strict=True))
    )
    return PretrainConfig(stages, seed=3, muon_lr=0.02, adamw_lr=0.01)


def run(model, folder, **changes) -> list[dict]:
    settings = {"checkpointer": Checkpointer(folder, every_steps=3), **changes}
    return list(pretrain(model, replace(config()), **settings))


def same_weights(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_learns_and_says_so(tmp_path):
    records = run(tiny_model(), tmp_path)
    assert [record["step"] for record in records] == list(range(20))
    assert records[-1]["cycle_loss_2"] < 0.7 * records[0]["cycle_loss_3"]
    assert [record["stage"] for record in records] == ["stage 0"] * 12 + ["stage 1"] * 8
    assert "cycle_loss_3" not in records[-1], "the second stage is two cycles deep"
    assert all(0 < record["memory_share"] < 1 for record in records)


def test_rates_rise_then_fall_to_nearly_nothing():
    plan = config((100,), (3,))
    scales = [plan.rate_scale(step) for step in range(100)]
    assert scales[0] == pytest.approx(0.2) and max(scales) == 1.0 and scales[-1] == pytest.approx(1 / 95)
    assert scales[4:] == sorted(scales[4:], reverse=True)


@pytest.mark.parametrize("leave_after", [0, 4, 11, 12, 18])
def test_leaving_and_coming_back_changes_no_bit(tmp_path, leave_after):
    whole, broken = tiny_model(), tiny_model()
    run(whole, tmp_path / "whole")
    steps = pretrain(broken, config(), checkpointer=Checkpointer(tmp_path / "broken", every_steps=1000))
    for record in steps:
        if record["step"] == leave_after:
            steps.close()
            break
    again = tiny_model()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.fill_(0.123)  # everything must come from the checkpoint
    torch.manual_seed(99)
    records = run(again, tmp_path / "broken")
    assert records[0]["step"] == leave_after + 1
    assert same_weights(whole, again)


def test_a_stop_from_outside_keeps_a_checkpoint(tmp_path):
    control, model = Control(tmp_path), tiny_model()
    seen = []
    with pytest.raises(RunStopped, match="after step 5 of 20"):
        for record in pretrain(model, config(), checkpointer=Checkpointer(tmp_path / "c"), control=control):
            seen.append(record["step"])
            if record["step"] == 4:
                control.request("stop")
    again, whole = tiny_model(), tiny_model()
    assert run(again, tmp_path / "c")[0]["step"] == 5
    run(whole, tmp_path / "whole")
    assert same_weights(whole, again)


def test_nan_names_the_step_and_the_layer(tmp_path):
    model = tiny_model()

    def poison(module, inputs, output):
        poison.calls += 1
        return output * float("nan") if poison.calls > 4 else output

    poison.calls = 0
    model.model.blocks[1].feed_forward.register_forward_hook(poison)
    with pytest.raises(NonFiniteError) as caught:
        run(model, tmp_path)
    assert caught.value.step == 4 and "blocks.1" in caught.value.where
    assert Checkpointer(tmp_path).latest()["step"] == 3, "the step that broke is not in the checkpoint"


class Bundle:
    """Three stages of packed rows, as the data room makes them."""

    def __init__(self):
        lengths = {"advanced": 16, "foundation": 8, "reasoning": 8}
        self.pools = {name: {"math": counting(30, n)} for name, n in lengths.items()}

    def weights(self, mix, stage):
        return {"math": 1.0}, ""


def test_the_trunk_walks_the_curriculum():
    stages = trunk_stages(Bundle(), 100, tokens_per_step=64)
    assert [(s.steps, s.seq_len, s.batch_size, s.max_cycles) for s in stages] == [
        (30, 8, 8, 3),
        (30, 8, 8, 3),
        (40, 16, 4, 3),
    ]


@pytest.mark.parametrize("name", SPECIALIST_CYCLES)
def test_a_specialist_ends_at_its_own_depth(name):
    first, second = specialist_stages(Bundle(), name, 11, tokens_per_step=64)
    assert first.seq_len == 16, "the last stage of the curriculum, in whatever order the pools stand"
    assert (first.steps, second.steps, first.max_cycles, second.max_cycles) == (5, 6, 3, SPECIALIST_CYCLES[name])
