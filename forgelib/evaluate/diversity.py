"""Do the specialists behave differently? Halting, memory use and latency of several models on the same texts."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def relative_spread(*means: float) -> float:
    """(largest - smallest) / mean: 0 for identical models, 1 where the range is as wide as the mean. No unit."""
    values = np.asarray(means, dtype=float)
    return float((values.max() - values.min()) / values.mean())


def spread_of_means(*samples: np.ndarray) -> float:
    """`relative_spread` of the samples' means: the statistic that the diversity gate bootstraps over texts."""
    return relative_spread(*(float(sample.mean()) for sample in samples))


def spread_of_medians(*samples: np.ndarray) -> float:
    """`relative_spread` of the samples' medians, for timings, whose outliers are interruptions."""
    return relative_spread(*(float(np.median(sample)) for sample in samples))


@dataclass(frozen=True)
class Behaviour:
    """How a model read N texts of T tokens at inference, halting on.

    cycles: [N] mean recursion cycles per token. horizon: [N] for how many tokens the memories keep what they learn, by
    the forget gates that each text really opened: the inverse of the mean forget gate alpha over heads and tokens,
    averaged over the memories; never above the configured horizon. memory_share: share of the mixed signal that comes
    from memory, mean over memories and texts, 0 to 1. sure, right: [N (T - 1)] of each predicted token whether it
    stopped because it was sure, and whether its most likely next token was right.
    """

    cycles: np.ndarray
    horizon: np.ndarray
    memory_share: float
    sure: np.ndarray
    right: np.ndarray


@torch.no_grad()
def behaviour(model: torch.nn.Module, input_ids: Tensor, batch_size: int = 16) -> Behaviour:
    """Read input_ids [N, T] once and tell all of it. Memories are modules that have `writes` and `ltm_tokens`."""
    model.eval()
    memories = [module for module in model.modules() if hasattr(module, "writes") and hasattr(module, "ltm_tokens")]
    horizons: list[Tensor] = []

    def look(memory: torch.nn.Module, inputs: tuple) -> None:
        forgotten = 1 - memory.writes(inputs[0], None, None)[0].decay
        horizons.append(1 / forgotten.flatten(1).mean(dim=1).double())

    handles = [memory.register_forward_pre_hook(look) for memory in memories]
    parts = []
    try:
        for rows in input_ids.split(batch_size):
            horizons.clear()
            rows = _for(model, rows)
            output = model(input_ids=rows, use_cache=False)
            cycles, horizon = output.n_cycles.float().mean(dim=1).double(), torch.stack(horizons).mean(dim=0)
            share = output.memory_share.mean().double().expand(len(rows))
            sure = (output.halt_probability[:, :-1] >= model.config.act_threshold).flatten()
            right = (output.logits[:, :-1].argmax(-1) == rows[:, 1:]).flatten()
            parts.append((cycles, horizon, share, sure, right))
    finally:
        for handle in handles:
            handle.remove()
    cycles, horizon, share, sure, right = (torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True))
    return Behaviour(cycles, horizon, float(share.mean()), sure, right)


@torch.no_grad()
def interleaved_latency(models: Sequence[torch.nn.Module], texts: Tensor, n_tokens: int) -> np.ndarray:
    """Milliseconds per token, [n models, n texts], one text at a time with a cache, as in generation.

    All models process the same tokens: the last `n_tokens` of each text one by one, after the rest in one pass
    (untimed). For every text the models take turns, in an order that rotates, so drift of the machine's speed cancels.
    texts: [N, T]. One untimed round warms up.
    """
    latencies = np.zeros((len(models), len(texts)))
    for model in models:
        _milliseconds_per_token(model.eval(), texts[0], n_tokens)
    for t, text in enumerate(texts):
        for turn in range(len(models)):
            m = (turn + t) % len(models)
            latencies[m, t] = _milliseconds_per_token(models[m], text, n_tokens)
    return latencies


def _milliseconds_per_token(model: torch.nn.Module, text: Tensor, n_tokens: int) -> float:
    tokens = _for(model, text[None])
    cache = model(input_ids=tokens[:, :-n_tokens], use_cache=True).past_key_values
    start = time.perf_counter()
    for i in range(tokens.shape[1] - n_tokens, tokens.shape[1]):
        output = model(input_ids=tokens[:, i : i + 1], past_key_values=cache, use_cache=True)
        output.logits.argmax(-1).tolist()  # as in generation, the next token is read before going on
    return 1000 * (time.perf_counter() - start) / n_tokens


def _for(model: torch.nn.Module, input_ids: Tensor) -> Tensor:
    """Token ids as the model takes them, on its device."""
    return input_ids.to(next(model.parameters()).device).long()
