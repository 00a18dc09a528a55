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
def interleaved_latency(models: Sequence[torch.nn.Module], prompts: Tensor, n_new_tokens: int) -> np.ndarray:
    """Milliseconds per generated token, [n models, n prompts], batch 1, greedy.

    For every prompt the models take turns, in an order that rotates, so drift of the machine's speed cancels.
    prompts: [N, T]. One untimed round warms up.
    """
    latencies = np.zeros((len(models), len(prompts)))
    for model in models:
        _generate(model, prompts[:1], n_new_tokens)
    for p in range(len(prompts)):
        for turn in range(len(models)):
            m = (turn + p) % len(models)
            start = time.perf_counter()
            _generate(models[m], prompts[p : p + 1], n_new_tokens)  # generate waits for the device: it reads each token
            latencies[m, p] = 1000 * (time.perf_counter() - start) / n_new_tokens
    return latencies


def _for(model: torch.nn.Module, input_ids: Tensor) -> Tensor:
    """Token ids as the model takes them, on its device."""
    return input_ids.to(next(model.parameters()).device).long()


def _generate(model: torch.nn.Module, prompt: Tensor, n_new_tokens: int) -> None:
    model.eval()
    prompt = _for(model, prompt)
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        min_new_tokens=n_new_tokens,
        max_new_tokens=n_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
