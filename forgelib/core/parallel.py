"""One training step over several processes: what each process measured on its rows is made common to all.

The model is not wrapped, so everything that reads its modules (QK-Clip, halting) works the same with one process
and with many; `accelerate launch` starts the processes (on CPUs `torchrun`: there, accelerate starts only one).
"""

import torch
from torch import nn


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
