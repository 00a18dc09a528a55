"""How a model thinks, looked at while it is trained: how coherent its thoughts are, and how long they take.

Shape legend: P problems, K thoughts of each, T tokens, D width.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from forgelib.evaluate import theater
from forgelib.evaluate.text_thinker import TextThinker
from forgelib.evaluate.thinker import Ids
from forgelib.thoughts import Coherence, semantic_coherence, syntactic_coherence
from forgelib.thoughts.causal_lm import CausalLM


def coherence(thinker: TextThinker, prompts: Sequence[str], thoughts: Sequence[Sequence[Ids]]) -> Coherence:
    """The three parts, each [P, K], of K thoughts of every prompt: of states, of marks, of answers that agree.

    Raises ValueError for fewer than two thoughts: predictive coherence is agreement with the others.
    """
    k = len(thoughts[0])
    flat, asked = [thought for row in thoughts for thought in row], [p for p in prompts for _ in range(k)]
    answers = thinker.answer(asked, flat)
    agreement = theater.agreement([answers[i : i + k] for i in range(0, len(answers), k)])
    marks = np.array([syntactic_coherence(thinker.text(thought), thinker.words) for thought in flat])
    return Coherence(_semantic(thinker, asked, flat).reshape(-1, k), marks.reshape(-1, k), agreement)


@torch.no_grad()
def _semantic(thinker: TextThinker, prompts: Sequence[str], thoughts: Sequence[Ids]) -> np.ndarray:
    """Likeness of the states of prompt and thought, one row at a time: [P K]."""
    lm, found = CausalLM(thinker.model), {}
    for prompt, thought in dict.fromkeys(zip(prompts, thoughts, strict=True)):
        before = thinker.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[*before, *thought]], device=lm.device)
        states = lm.read(ids, torch.ones_like(ids), torch.arange(ids.shape[1], device=lm.device)[None]).states[0]
        parts: list[Tensor] = [states[len(before) :], states[: len(before)]]
        masks = [torch.ones(len(part), dtype=torch.bool, device=lm.device) for part in parts]
        found[prompt, thought] = float(semantic_coherence(parts[0], masks[0], parts[1], masks[1]))
    return np.array([found[pair] for pair in zip(prompts, thoughts, strict=True)])


def latency_ms(thinker: TextThinker, prompts: Sequence[str], repeats: int = 3) -> float:
    """Milliseconds from a question to its answer with a greedy thought, one question at a time: the fastest of
    `repeats`, since other work can only add to it; median over the questions."""
    fastest = np.full(len(prompts), np.inf)
    for _ in range(repeats):
        for i, prompt in enumerate(prompts):
            started = time.perf_counter()
            thought = thinker.think([prompt], n=1, seed=0, temperature=0.0)[0]
            thinker.answer([prompt], thought)
            fastest[i] = min(fastest[i], 1000 * (time.perf_counter() - started))
    return float(np.median(fastest))


def observe(
    model: nn.Module, tokenizer, words, prompts: Sequence[str], *, n_thoughts: int, seed: int, **options
) -> dict[str, float]:
    """METHOD's `rl/` metrics of thoughts: coherence_{semantic, syntactic, predictive, composite} of sampled thoughts,
    inference_time_ms of greedy ones. options: of the TextThinker. The model's mode is left as it was."""
    was_training = model.training
    thinker = TextThinker(model.eval(), tokenizer, words, **options)
    thoughts = thinker.think(prompts, n=n_thoughts, seed=seed)
    parts = coherence(thinker, prompts, thoughts)
    found = {f"coherence_{n}": float(getattr(parts, n).mean()) for n in ("semantic", "syntactic", "predictive")}
    found["coherence_composite"] = float(np.asarray(parts.composite).mean())
    found["inference_time_ms"] = latency_ms(thinker, prompts[:4], repeats=2)
    model.train(was_training)
    return found
