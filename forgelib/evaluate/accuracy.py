"""Is the answer right? Greedy generation, then the answer's text against the reference - never token accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Answers:
    """Generated answers beside their references. correct [n] bool; answers and references are stripped texts."""

    correct: np.ndarray
    answers: list[str]
    references: list[str]

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return float(self.correct.mean())


def first_line(text: str) -> str:
    """What counts as the answer: the text up to the first line break, without surrounding blanks."""
    return text.strip().split("\n", 1)[0].strip()


def same_text(answer: str, reference: str) -> bool:
    """Whether both have the same first line, letter by letter."""
    return first_line(answer) == first_line(reference)


def answer_by_generation(
    model: torch.nn.Module,
    tokenizer,
    prompts: Sequence[str],
    references: Sequence[str],
    *,
    max_new_tokens: int = 12,
    max_prompt_tokens: int = 512,
    batch_size: int = 64,
) -> Answers:
    """Greedy answers of any causal LM to `prompts`, compared letter by letter with `references`.

    Raises ValueError where there is nothing to answer.
    """
    if not prompts or len(prompts) != len(references):
        raise ValueError(f"need as many references as prompts and at least one: got {len(references)}, {len(prompts)}")
    texts = greedy_texts(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        max_prompt_tokens=max_prompt_tokens,
        batch_size=batch_size,
    )
    answers, wanted = [first_line(text) for text in texts], [first_line(reference) for reference in references]
    return Answers(np.array([a == w for a, w in zip(answers, wanted, strict=True)]), answers, wanted)


@torch.no_grad()
def greedy_texts(
    model: torch.nn.Module,
    tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    max_prompt_tokens: int = 512,
    batch_size: int = 64,
) -> list[str]:
    """What any causal LM writes after each prompt, greedily, until end of text or `max_new_tokens`.

    Prompts longer than `max_prompt_tokens` lose their beginning. Prompts are grouped by length and padded on the
    left. The model's training mode is restored.
    """
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"][-max_prompt_tokens:] for prompt in prompts]
    by_length = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    texts = [""] * len(ids)
    for start in range(0, len(ids), batch_size):
        rows = by_length[start : start + batch_size]
        longest = max(len(ids[i]) for i in rows)
        batch = torch.full((len(rows), longest), pad)
        mask = torch.zeros((len(rows), longest), dtype=torch.long)
        for row, i in enumerate(rows):
            batch[row, longest - len(ids[i]) :] = torch.tensor(ids[i])
            mask[row, longest - len(ids[i]) :] = 1
        generated = model.generate(
            batch.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=tokenizer.eos_token_id,
        )
        for row, i in enumerate(rows):
            texts[i] = tokenizer.decode(generated[row, longest:], skip_special_tokens=True)
    model.train(was_training)
    return texts
