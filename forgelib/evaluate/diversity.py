"""Do the specialists behave differently? Halting, memory use and latency of several models on the same texts."""

import time
from collections.abc import Sequence

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


@torch.no_grad()
def cycles_per_text(model: torch.nn.Module, input_ids: Tensor, batch_size: int = 16) -> np.ndarray:
    """Mean recursion cycles per token of each text, [N]; input_ids [N, T]."""
    model.eval()
    parts = [model(input_ids=_for(model, rows), use_cache=False).n_cycles for rows in input_ids.split(batch_size)]
    return torch.cat(parts).float().mean(dim=1).double().cpu().numpy()


@torch.no_grad()
def halted_and_right(model: torch.nn.Module, input_ids: Tensor, batch_size: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Per predicted token: did it stop because it was sure; was its most likely next token right? Two bool arrays."""
    model.eval()
    sure, right = [], []
    for rows in input_ids.split(batch_size):
        rows = _for(model, rows)
        output = model(input_ids=rows, use_cache=False)
        sure.append(output.halt_probability[:, :-1] >= model.config.act_threshold)
        right.append(output.logits[:, :-1].argmax(-1) == rows[:, 1:])
    return torch.cat(sure).flatten().cpu().numpy(), torch.cat(right).flatten().cpu().numpy()


@torch.no_grad()
def memory_share_per_text(model: torch.nn.Module, input_ids: Tensor) -> np.ndarray:
    """Share of the mixed signal that comes from memory in each text, mean over the memories, [N], 0 to 1."""
    model.eval()
    shares = [model(input_ids=_for(model, row[None]), use_cache=False).memory_share.mean() for row in input_ids]
    return torch.stack(shares).double().cpu().numpy()


@torch.no_grad()
def memory_horizon_per_text(model: torch.nn.Module, input_ids: Tensor) -> np.ndarray:
    """For how many tokens the memories keep what they learn, by the forget gates that each text really opens, [N].

    The inverse of the mean forget gate alpha over heads and tokens, averaged over the memories (modules that have
    `writes`); never above the configured horizon.
    """
    model.eval()
    memories = [module for module in model.modules() if hasattr(module, "writes") and hasattr(module, "ltm_tokens")]
    horizons: list[float] = []

    def seen(module: torch.nn.Module, inputs: tuple) -> None:
        horizons.append(1 / float((1 - module.writes(inputs[0], None, None)[0].decay).mean()))

    handles = [memory.register_forward_pre_hook(seen) for memory in memories]
    try:
        for row in input_ids:
            model(input_ids=_for(model, row[None]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return np.array(horizons).reshape(len(input_ids), len(memories)).mean(axis=1)


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
