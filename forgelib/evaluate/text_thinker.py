"""Any causal language model as a Thinker: it writes its thoughts as text, between the tokens of a vocabulary.

    prompt | " [thinking]" | thought | "[/endthinking]" | " answer" <end of text>

The model is used through its public API alone: generate with its cache, on prompts padded on the left, and one forward
pass to read probabilities. It is opened and closed the way baking writes its rows. On the path without a thought, and
after one, no token of the vocabulary can be written, so that the answer is not a second thought.

Shape legend: B rows of a batch, N rows, L tokens of a thought, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from forgelib.core.rng import stream
from forgelib.data import Vocabulary
from forgelib.data.reasoning import without_thought

from .accuracy import first_line
from .continuations import log_likelihoods, read_continuations
from .thinker import Ids, Thinker


class TextThinker:
    """A Thinker (`evaluate.thinker`) made of a Hugging Face causal LM, its tokenizer and a thinking vocabulary.

    Args: max_thought_tokens, the end token counted; top_p: nucleus that sampled thoughts are drawn from (METHOD: 0.9);
    filler: a text whose last token fills thoughts that say nothing; batch_size: rows of a forward pass. at_once: where
    no thought is wanted the prompt asks for the answer at once, as baking trains it (`data.reasoning.without_thought`).
    Raises ValueError for sizes below one, and where the tokenizer has no end of text. One without the vocabulary is
    taken, as a champion from before baking has it: such a model can answer, but not think.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer,
        words: Vocabulary,
        *,
        max_thought_tokens: int = 64,
        max_answer_tokens: int = 12,
        top_p: float = 0.9,
        filler: str = ".",
        batch_size: int = 64,
        at_once: bool = False,
    ):
        if min(max_thought_tokens, max_answer_tokens, batch_size) < 1 or not 0 < top_p <= 1:
            raise ValueError(
                f"max_thought_tokens = {max_thought_tokens}, max_answer_tokens = {max_answer_tokens} and batch_size = "
                f"{batch_size} must be at least 1, top_p = {top_p} above 0 and at most 1"
            )
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end of text: no answer would ever end")
        self.model, self.tokenizer, self.words = model, tokenizer, words
        self.max_thought_tokens, self.max_answer_tokens = max_thought_tokens, max_answer_tokens
        self.top_p, self.batch_size, self._filler, self.at_once = top_p, batch_size, filler, at_once
        known = tokenizer.get_vocab()
        self._ids = {token: known[token] for token in words.tokens if token in known}

    def think(self, prompts: Sequence[str], *, n: int, seed: int, temperature: float = 1.0) -> list[list[Ids]]:
        """`n` thoughts for each prompt. Row i draws by numbers of its own, whatever it is batched with.

        A thought ends at its end token or after max_thought_tokens; end of text cannot be written inside one.
        Raises ValueError where prompt, thought and answer do not fit the model's context.
        """
        contexts = self._contexts(prompts, [()] * len(prompts), closed=False)
        self._must_fit(contexts, self.max_thought_tokens + 1 + self.max_answer_tokens)
        times, draw = (1, None) if temperature == 0 else (n, self._draw(len(prompts) * n, seed, temperature))
        rows = [context for context in contexts for _ in range(times)]
        end = self._id(self.words.end)
        written = self._generate(rows, self.max_thought_tokens, end, [self.tokenizer.eos_token_id], draw)
        thoughts = [tuple(ids[:-1] if ids[-1] == end else ids) for ids in written]
        return [thoughts[i * times : (i + 1) * times] * (n // times) for i in range(len(prompts))]

    def answer(self, prompts: Sequence[str], thoughts: Sequence[Ids | None]) -> list[str]:
        """The first line that is written after prompt and thought, greedily, in at most max_answer_tokens."""
        contexts = [tuple(ids) for ids in self._contexts(prompts, thoughts)]
        self._must_fit(contexts, self.max_answer_tokens)
        different = list(dict.fromkeys(contexts))  # sampled thoughts are often the same, and greedy answers with them
        written = self._generate(
            [list(ids) for ids in different], self.max_answer_tokens, self.tokenizer.eos_token_id, self._vocabulary()
        )
        texts = [first_line(self.tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]
        told = dict(zip(different, texts, strict=True))
        return [told[ids] for ids in contexts]

    @torch.no_grad()
    def log_probs(
        self, prompts: Sequence[str], thoughts: Sequence[Ids | None], candidates: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """log P(" candidate" <end of text> | prompt, thought) in nats, of the model as it is: [candidates] a prompt."""
        contexts, end = self._contexts(prompts, thoughts), self.tokenizer.eos_token_id
        rows = [
            (i, [*self.tokenizer(f" {candidate}", add_special_tokens=False)["input_ids"], end])
            for i, some in enumerate(candidates)
            for candidate in some
        ]
        self._must_fit([contexts[i] + ids for i, ids in rows], 0)
        values, by_length = np.empty(len(rows)), sorted(range(len(rows)), key=lambda j: len(contexts[rows[j][0]]))
        was_training = self.model.training
        self.model.eval()
        for first in range(0, len(rows), self.batch_size):
            some = by_length[first : first + self.batch_size]
            read = read_continuations(self.model, [contexts[rows[j][0]] for j in some], [rows[j][1] for j in some])
            values[some] = log_likelihoods(read).cpu().numpy()
        self.model.train(was_training)
        return np.split(values, np.cumsum([len(some) for some in candidates])[:-1])

    def continuation(self, prompts: Sequence[str]) -> list[Ids]:
        """What the model writes greedily without a thought, until end of text or max_thought_tokens."""
        contexts, end = self._contexts(prompts, [None] * len(prompts)), self.tokenizer.eos_token_id
        self._must_fit(contexts, self.max_thought_tokens)
        written = self._generate(contexts, self.max_thought_tokens, end, self._vocabulary())
        return [tuple(ids[:-1] if ids[-1] == end else ids) for ids in written]

    def filler(self, length: int) -> Ids:
        """One neutral token, `length` times. Raises ValueError where the tokenizer does not know it."""
        ids = self.tokenizer(self._filler, add_special_tokens=False)["input_ids"]
        if not ids or ids[-1] == self.tokenizer.unk_token_id:
            raise ValueError(f"the tokenizer has no token for the filler {self._filler!r}: name another text")
        return (ids[-1],) * length

    def text(self, thought: Ids) -> str:
        """The thought with its outer tokens; one that was cut off has no end."""
        closed = len(thought) < self.max_thought_tokens
        return self.words.begin + self.tokenizer.decode(list(thought)) + self.words.end * closed

    def _id(self, token: str) -> int:
        if token not in self._ids:
            raise ValueError(
                f"the tokenizer has no token {token}: this model cannot think in {self.words.name}; add the vocabulary "
                "with forgelib.thoughts.add_vocabulary and bake it (30_quietstar_bake)"
            )
        return self._ids[token]

    def _vocabulary(self) -> list[int]:
        return sorted(self._ids.values())

    def _contexts(self, prompts: Sequence[str], thoughts: Sequence[Ids | None], closed: bool = True) -> list[list[int]]:
        """Token ids of prompt and thought; `closed`: with the thought's end token."""
        if not prompts or len(prompts) != len(thoughts):
            raise ValueError(f"need a thought for every prompt and at least one: got {len(thoughts)}, {len(prompts)}")
        if (longest := max(len(thought or ()) for thought in thoughts)) > self.max_thought_tokens:
            raise ValueError(
                f"a thought has {longest} tokens, max_thought_tokens is {self.max_thought_tokens}: shorten it, or "
                "raise the limit"
            )
        found = []
        for prompt, thought in zip(prompts, thoughts, strict=True):
            asked = without_thought(prompt) if thought is None and self.at_once else prompt
            ids = self.tokenizer(asked, add_special_tokens=False)["input_ids"]
            if thought is not None:
                ids = [*ids, *self._opening(), *thought, *([self._id(self.words.end)] if closed else [])]
            if not ids:
                raise ValueError("a prompt has no token: nothing could follow it")
            found.append(ids)
        return found

    def _opening(self) -> list[int]:
        """A blank and the begin token, as baking encodes them."""
        self._id(self.words.begin)
        return self.tokenizer(f" {self.words.begin}", add_special_tokens=False)["input_ids"]

    def _must_fit(self, contexts: Sequence[Sequence[int]], more: int) -> None:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(map(len, contexts))
        if limit is not None and longest + more > limit:
            raise ValueError(
                f"prompt, thought and answer may take {longest + more} tokens, the model's context has {limit}: lower "
                "max_thought_tokens or max_answer_tokens, or leave the longest prompts out"
            )

    def _draw(self, rows: int, seed: int, temperature: float) -> "_Nucleus":
        generator = torch.Generator().manual_seed(stream(seed, "thoughts"))
        numbers = torch.rand((rows, self.max_thought_tokens), generator=generator, dtype=torch.float64)
        return _Nucleus(numbers, temperature, self.top_p)

    @torch.no_grad()
    def _generate(
        self, contexts: list[list[int]], n_tokens: int, stop: int, never: list[int], draw: "_Nucleus | None" = None
    ) -> list[list[int]]:
        """What is written after each context, the stop token included: greedily, or as `draw` decides."""
        model, device = self.model, next(self.model.parameters()).device
        own, was_training = model.generation_config, model.training
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        options = {"suppress_tokens": never} if never else {}
        plain = GenerationConfig(
            max_new_tokens=n_tokens, do_sample=False, eos_token_id=stop, pad_token_id=pad, **options
        )
        found: list[list[int]] = [[] for _ in contexts]
        by_length = sorted(range(len(contexts)), key=lambda i: (len(contexts[i]), i))
        model.generation_config = plain  # the settings that a model ships (top-p, repetition penalty) take no part
        model.eval()
        try:
            for first in range(0, len(contexts), self.batch_size):
                rows = by_length[first : first + self.batch_size]
                longest = max(len(contexts[i]) for i in rows)
                ids = torch.tensor([[pad] * (longest - len(contexts[i])) + contexts[i] for i in rows])
                mask = torch.tensor([[0] * (longest - len(contexts[i])) + [1] * len(contexts[i]) for i in rows])
                drawing = LogitsProcessorList([draw.for_rows(rows)] if draw else [])
                made = model.generate(ids.to(device), attention_mask=mask.to(device), logits_processor=drawing)
                for i, row in zip(rows, made[:, longest:].tolist(), strict=True):
                    found[i] = row[: row.index(stop) + 1] if stop in row else row
        finally:
            model.generation_config = own
            model.train(was_training)
        return found


class _Nucleus(LogitsProcessor):
    """Leaves of every row's tokens the one its next number u [N, L] falls on: a draw from the nucleus [1904.09751]."""

    def __init__(self, numbers: Tensor, temperature: float, top_p: float):
        self.numbers, self.temperature, self.top_p, self.column = numbers, temperature, top_p, 0

    def for_rows(self, rows: list[int]) -> "_Nucleus":
        """The draw of some rows alone, from its first number on."""
        return _Nucleus(self.numbers[rows], self.temperature, self.top_p)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        ordered, order = (scores.double() / self.temperature).softmax(-1).sort(-1, descending=True)
        kept = ordered * (ordered.cumsum(-1) - ordered < self.top_p)
        sums = kept.cumsum(-1)
        u = self.numbers[:, self.column, None].to(scores.device)
        drawn = order.gather(-1, (sums <= u * sums[:, -1:]).sum(-1, keepdim=True))
        self.column += 1
        return torch.full_like(scores, float("-inf")).scatter(1, drawn, 0.0)


def as_thinker(model: Thinker | nn.Module, tokenizer, words: Vocabulary, **options) -> Thinker:
    """A Thinker as it is; a causal LM as a TextThinker with `options`."""
    return model if hasattr(model, "think") else TextThinker(model, tokenizer, words, **options)
