"""Data-parallel training: every process clips by the largest logit that any of them saw, so weights stay equal."""

import multiprocessing

import torch
import torch.distributed as dist
from torch import nn

from forgelib.optim.qk_clip import clip_heads


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.max_logits = 2, None
        self.q_proj, self.k_proj = nn.Linear(4, 4), nn.Linear(4, 4)


def one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    modules = {"first": Attention(), "second": Attention(), "idle": Attention()}
    modules["first"].max_logits = torch.tensor([8.0, 1.0] if rank == 0 else [2.0, 6.0])
    modules["second"].max_logits = None if rank == 0 else torch.tensor([1.0, 10.0])
    clipped = clip_heads(modules, 4.0)
    torch.save((clipped, nn.ModuleList(modules.values()).state_dict()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_that_saw_different_logits_scale_the_same_heads_alike(tmp_path):
    fork = multiprocessing.get_context("fork")  # torch is loaded already: a fresh start would take seconds
    running = [fork.Process(target=one_process, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join(timeout=60)
    assert [process.exitcode for process in running] == [0, 0]
    (clipped, first), (also_clipped, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert clipped == also_clipped == {"first": [0, 1], "second": [1]}
    assert all(torch.equal(first[name], second[name]) for name in first)
