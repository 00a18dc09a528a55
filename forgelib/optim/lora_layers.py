"""Which layers of a causal LM take a LoRA adapter (2106.09685)."""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def adapted_layers(model: nn.Module, input_ids: Tensor) -> list[str]:
    """Names of the layers that get an adapter: every nn.Linear (and GPT-2's Conv1D) except head and embedding.

    A layer that ran on `input_ids` [1, T] without any way to the logits is left out: nothing could train it, as the
    halting probe of a Cognate model, whose output only decides; one that did not run, as an idle expert, stays. Each
    output is scaled by its own 1 to see that, so the look costs one pass and no gradient of a weight.
    Raises ValueError where there is no such layer.
    """
    ends = [end for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None]
    taken = {id(p) for end in ends for p in end.parameters()}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in taken
    }
    if not layers:
        kinds = sorted({type(m).__name__ for m in model.modules() if len(list(m.parameters(recurse=False)))})
        raise ValueError(
            f"{type(model).__name__} has no linear layer besides its output head (weights are in {', '.join(kinds)}): "
            "LoRA has nothing to adapt, so a prompt cannot be baked into it"
        )
    scales, handles = {}, []
    for name, module in layers.items():

        def scaled(module: nn.Module, inputs: tuple, output: Tensor, name: str = name) -> Tensor:
            scales.setdefault(name, torch.ones((), device=output.device, dtype=output.dtype, requires_grad=True))
            return output * scales[name]

        handles.append(module.register_forward_hook(scaled))
    try:
        with torch.enable_grad():
            total = model(input_ids=input_ids, use_cache=False).logits.float().sum()
            gradients = torch.autograd.grad(total, list(scales.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    cut_off = {name for name, gradient in zip(scales, gradients, strict=True) if gradient is None}
    return [name for name in layers if name not in cut_off]
