"""Which parameter is moved by Muon and which by AdamW.

Muon treats a matrix as a linear map between hidden states. An embedding is a table, a head faces the vocabulary, a
norm or bias is a vector, a convolution or a memory has more dimensions: those are AdamW's.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

#: A two-dimensional parameter whose module is called so is a head, even where no `get_output_embeddings` tells.
HEAD_NAMES = ("lm_head", "head", "score", "classifier")


@dataclass
class Split:
    """muon: hidden matrices. decayed, spared: what AdamW takes, with two or more dimensions and with fewer.

    transposed: hidden matrices stored [inputs, outputs] (GPT-2's Conv1D) instead of [outputs, inputs].
    """

    muon: list[Tensor] = field(default_factory=list)
    decayed: list[Tensor] = field(default_factory=list)
    spared: list[Tensor] = field(default_factory=list)
    transposed: set[Tensor] = field(default_factory=set)


def split_parameters(model: nn.Module) -> Split:
    """Every parameter that requires a gradient, once, however many modules share it.

    Muon takes a parameter when it has two dimensions, both larger than 1, and is in no use
    - the weight of an nn.Embedding or nn.EmbeddingBag, or named "...embed...",
    - part of `model.get_output_embeddings()`, or of a module named lm_head, head, score, classifier or "..._head".
    Raises ValueError for parameters below float32 (the slow average would lose its updates to rounding: keep float32
    weights and compute under autocast), for sparse embeddings, and for a model without trainable parameters.
    """
    tables = _tables_and_heads(model)
    split = Split()
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if p.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} is {p.dtype}: MuonGrokfast needs float32 weights, because its averages move by less than "
                "16 bits can hold. Load the model with dtype=torch.float32 and compute under autocast"
            )
        if p.dim() == 2 and min(p.shape) > 1 and id(p) not in tables:
            split.muon.append(p)
        else:
            (split.decayed if p.dim() > 1 else split.spared).append(p)
    if not (split.muon or split.decayed or split.spared):
        raise ValueError("the model has no parameter that requires a gradient")
    split.transposed = {m.weight for m in model.modules() if type(m).__name__ == "Conv1D"}
    return split


def _tables_and_heads(model: nn.Module) -> set[int]:
    found = set()
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        is_table = isinstance(module, nn.Embedding | nn.EmbeddingBag)
        if is_table and module.sparse:
            raise ValueError(f"{name} gives sparse gradients, which Grokfast cannot average: make it with sparse=False")
        if is_table or last in HEAD_NAMES or last.endswith("_head"):
            found |= {id(p) for p in module.parameters(recurse=False)}
        found |= {id(p) for own, p in module.named_parameters(recurse=False) if "embed" in own}
    if callable(getattr(model, "get_output_embeddings", None)):
        head = model.get_output_embeddings()
        found |= set() if head is None else {id(p) for p in head.parameters()}
    return found
