"""One training over several processes: found by the launcher's environment, made one model at every step.

    torchrun --nproc_per_node 2 ...          two processes of this machine (on CPUs, too)
    accelerate launch --num_processes 2 ...  the same on GPUs

The model is not wrapped, so everything that reads its modules (QK-Clip, halting) works the same with one process and
with many.
"""

import functools
import os

import torch
from torch import nn


@functools.cache
def launched():
    """The accelerator of this process, or None where no launcher started several (WORLD_SIZE is unset or 1)."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    from accelerate import Accelerator

    return Accelerator(cpu=not torch.cuda.is_available())


@torch.no_grad()
def share_step(model: nn.Module, accelerator) -> None:
    """After the backward pass: gradients and floating buffers become the mean over the processes, attention-logit
    maxima (`max_logits` of attention modules) the largest. With equal rows per process this equals one large batch.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return
    tensors = [p.grad for p in model.parameters() if p.grad is not None]
    tensors += [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    flat = accelerator.reduce(torch.cat([t.reshape(-1).float() for t in tensors]), reduction="mean")
    for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
    for module in model.modules():
        largest = getattr(module, "max_logits", None)
        if isinstance(largest, torch.Tensor):
            module.max_logits = accelerator.gather(largest[None]).amax(dim=0)


def mean_over_processes(value: torch.Tensor, accelerator) -> torch.Tensor:
    """The mean of a scalar tensor, the same on every process; the value itself where there is one process."""
    if accelerator is None or accelerator.num_processes == 1:
        return value
    return accelerator.reduce(value, reduction="mean")
