"""What a champion is held against: an ensemble of its parents, parents of one even mix, one joint model."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from forgelib.evaluate.texts import Batch, OperationCounter, Scores, Texts, read_texts
from forgelib.phases.curriculum import Stage, trunk_stages
from forgelib.phases.workshop import one_thread


def ensemble_scores(models: Sequence[torch.nn.Module], texts: Texts) -> Scores:
    """The mean of the models' next-token probabilities, read like one model. It costs what all of them cost."""
    counters = [OperationCounter(model.eval()) for model in models]

    def forward(batch: Batch) -> Tensor:
        given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        logs = [model(**given).logits.float().log_softmax(-1) for model in models]
        return torch.logsumexp(torch.stack(logs), dim=0)

    try:
        with one_thread():
            losses, right = read_texts(forward, texts)
    finally:
        for counter in counters:
            counter.remove()
    operations = sum(counter.total for counter in counters) / texts.n_tokens
    n_bytes = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
    return Scores(losses, right, operations, n_bytes)


def even_stages(bundle, steps: int, tokens_per_step: int) -> tuple[Stage, ...]:
    """The specialists' stage in the trunk's even mix, at the trunk's depth: for parents that do not specialise, and for
    one joint model with the steps of all three."""
    return (replace(trunk_stages(bundle, steps, tokens_per_step)[-1], steps=steps),)
