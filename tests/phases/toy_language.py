"""A toy language in which a prompt in front of a question changes the answer, and a tiny Llama that knows it.

    [s t | t s | nothing] [v | nothing] letter letter ? answer

The answer is a Markov chain over six letters that starts at the question's last letter: one chain behind `s t`, another
behind `t s`, a third without. Each letter is small or big; `v` makes big letters the rule. So the order of two tokens
is a prompt whose shuffled form is another prompt, and `v` is a second prompt independent of the first.
"""

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from forgelib.evaluate.continuations import PromptedQuestions

END, S, T, V, ASK, FIRST, LETTERS = 0, 1, 2, 3, 4, 5, 6
STYLES = ((), (S, T), (T, S))
VOCABULARY, QUESTION, ANSWER = FIRST + 2 * LETTERS, 2, 10


def chains() -> np.ndarray:
    """Transition matrices [style, from, to]."""
    return np.random.default_rng(5).dirichlet(np.full(LETTERS, 0.5), (len(STYLES), LETTERS))


def questions(n: int, seed: int) -> list[tuple[int, ...]]:
    drawn = np.random.default_rng(seed).integers(FIRST, VOCABULARY, (n, QUESTION))
    return [(*row, ASK) for row in drawn.tolist()]


def asked(prompt: tuple[int, ...], n: int, seed: int) -> PromptedQuestions:
    return PromptedQuestions.from_ids(prompt, questions(n, seed))


def answers(last: np.ndarray, style: np.ndarray, big: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Tokens [B, ANSWER] after last letters [B] in styles [B]; big [B]: whether `v` stood in front."""
    sums, letter, columns = chains().cumsum(-1), (last - FIRST) % LETTERS, []
    for _ in range(ANSWER):
        letter = (sums[style, letter] < generator.random((len(last), 1))).sum(1).clip(max=LETTERS - 1)
        case = generator.random(len(last)) < np.where(big, 0.9, 0.2)
        columns.append(FIRST + letter + LETTERS * case)
    return np.stack(columns, 1)


def batch(n: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and labels [n, T], padded on the right; only the answers are labelled."""
    style, big = generator.integers(0, len(STYLES), n), generator.random(n) < 0.5
    asked = generator.integers(FIRST, VOCABULARY, (n, QUESTION))
    said = answers(asked[:, -1], style, big, generator)
    ids = torch.zeros((n, 4 + QUESTION + ANSWER), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row in range(n):
        front = [*STYLES[style[row]], *([V] if big[row] else []), *asked[row], ASK]
        ids[row, : len(front) + ANSWER] = torch.tensor([*front, *said[row]])
        labels[row, len(front) : len(front) + ANSWER] = torch.tensor(said[row])
    return ids, labels


def speaker(steps: int = 250) -> LlamaForCausalLM:
    """A Llama of about 30,000 weights that has learnt the language, in evaluation mode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model, generator = LlamaForCausalLM(config), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(steps):
        ids, labels = batch(64, generator)
        logits = model(ids, use_cache=False).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return model.eval()
