"""One padded pass measures what careful single passes, generation and counting by hand measure."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from forgelib.evaluate.accuracy import answer_by_generation
from forgelib.evaluate.perplexity import losses_per_text
from forgelib.evaluate.texts import batch_texts, score_texts
from forgelib.models import CognateConfig, CognateForCausalLM

VOCABULARY = 23
ANSWER = 3


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes, num_key_value_heads=2, initializer_range=0.4))


def cognate(threshold: float = 0.5) -> CognateForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 24, "window": 5}
    config = CognateConfig(**sizes, memory_chunk=4, initializer_range=0.4, act_threshold=threshold)
    model = CognateForCausalLM(config)
    with torch.no_grad():
        model.model.halting.probe.weight.normal_(std=2.0)
        model.model.halting.probe.bias.zero_()
    return model


BUILD = pytest.mark.parametrize("build", [llama, cognate], ids=["llama", "cognate"])


def drawn(n: int, length: int | None = None, seed: int = 0) -> list[list[int]]:
    dice = torch.Generator().manual_seed(seed)
    lengths = [length] * n if length else torch.randint(4, 14, (n,), generator=dice).tolist()
    return [torch.randint(0, VOCABULARY, (size,), generator=dice).tolist() for size in lengths]


def measure(model, encoded, tokens_per_batch: int = 4096, **settings):
    texts = batch_texts(encoded, ["x"] * len(encoded), pad_token_id=0, tokens_per_batch=tokens_per_batch, **settings)
    return score_texts(model, texts)


class Letters:
    """A tokenizer of one letter a token; no token ends a text."""

    pad_token_id, eos_token_id = 0, 10**6

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [ord(letter) - ord("A") for letter in text]}

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(ord("A") + int(i)) for i in ids)


@BUILD
def test_one_pass_finds_right_what_generation_writes(build):
    model, letters, dice = build(), Letters(), np.random.default_rng(0)
    prompts = [letters.decode(ids) for ids in drawn(40)]
    own = answer_by_generation(model, letters, prompts, ["?"] * 40, max_new_tokens=ANSWER).answers
    references = []
    for i, answer in enumerate(own):
        ids = letters(answer)["input_ids"]
        if i % 2:  # one letter, at any place, is another
            place = dice.integers(ANSWER)
            ids[place] = (ids[place] + dice.integers(1, VOCABULARY)) % VOCABULARY
        references.append(letters.decode(ids))
    generated = answer_by_generation(model, letters, prompts, references, max_new_tokens=ANSWER).correct
    assert generated.sum() == 20
    encoded = [(letters(p)["input_ids"], letters(r)["input_ids"]) for p, r in zip(prompts, references, strict=True)]
    for tokens_per_batch in (1, 64, 4096):
        assert (measure(model, encoded, tokens_per_batch).right == generated).all()


@BUILD
def test_losses_are_those_of_unpadded_texts(build):
    model, ids = build(), drawn(9, length=11)
    expected = losses_per_text(model, torch.tensor(ids))
    assert measure(model, [(row, []) for row in ids]).losses == pytest.approx(expected, abs=1e-6)


@BUILD
def test_padding_changes_nothing(build):
    model, encoded = build().double(), [(ids[:-2], ids[-2:] if i % 2 else []) for i, ids in enumerate(drawn(24))]
    alone, together = measure(model, encoded, tokens_per_batch=1), measure(model, encoded)
    assert together.losses == pytest.approx(alone.losses, abs=1e-6)
    assert np.array_equal(together.right, alone.right, equal_nan=True)
    assert np.isnan(together.right[::2]).all() and not np.isnan(together.right[1::2]).any()
    single = [losses_per_text(model, torch.tensor([[*p, *a]]))[0] for p, a in encoded]
    assert together.losses == pytest.approx(single, abs=1e-6)


def test_batches_hold_every_text_once_within_their_size():
    ids = drawn(50)
    categories = ["b" if len(row) > 8 else "a" for row in ids]
    texts = batch_texts([(row, []) for row in ids], categories, pad_token_id=0, tokens_per_batch=40)
    assert sorted(torch.cat([batch.rows for batch in texts.batches]).tolist()) == list(range(50))
    assert len(texts) == 50 and texts.n_tokens == sum(map(len, ids)) and texts.categories == ("a", "b")
    assert [texts.categories[c] for c in texts.category] == categories
    for batch in texts.batches:
        assert batch.input_ids.numel() <= 40
        for row, number in enumerate(batch.rows):
            kept = batch.input_ids[row][batch.attention_mask[row].bool()]
            assert kept.tolist() == ids[number]


def test_a_long_text_loses_its_beginning_and_keeps_its_answer():
    texts = batch_texts([([1, 2, 3, 4], [5, 6]), ([7], [8])], ["x", "x"], pad_token_id=0, max_tokens=3)
    (batch,) = texts.batches
    assert batch.input_ids.tolist() == [[7, 8, 0], [4, 5, 6]]
    assert batch.is_answer.tolist() == [[False, True, False], [False, True, True]]


@pytest.mark.parametrize("encoded, categories", [([], []), ([([1], [])], ["x"]), ([([1], [2])], [])])
def test_nothing_to_predict_is_refused(encoded, categories):
    with pytest.raises(ValueError, match=r"at least one|fewer than two"):
        batch_texts(encoded, categories, pad_token_id=0)


class Stack(nn.Module):
    """Embedding 23x8, Linear 8x12 twice applied through 12x8, and a tied head."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCABULARY, 8), nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8, bias=False)
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.real_tokens = 0

    def forward(self, input_ids, attention_mask, use_cache):
        self.real_tokens += int(attention_mask.sum())
        x = self.embed(input_ids)
        for _ in range(2):
            x = self.norm(x + self.down(self.up(x).relu()))
        return SimpleNamespace(logits=self.head(x))


def test_operations_and_bytes_are_those_counted_by_hand():
    torch.manual_seed(0)
    model = Stack().train()
    found = measure(model, [(row, []) for row in drawn(6, length=7)])
    assert found.operations == 2 * (8 * 12 + 12 * 8) + 8 * VOCABULARY
    assert found.n_bytes == 4 * (VOCABULARY * 8 + 16 + 8 * 12 + 12 + 12 * 8), "the tied head once"
    assert model.training and not model.up._forward_hooks, "left as it was found"


def test_the_model_is_told_what_is_padding():
    model, ids = Stack(), drawn(10)
    measure(model, [(row, []) for row in ids])
    assert model.real_tokens == sum(map(len, ids))


def test_a_model_that_halts_earlier_does_less():
    encoded = [(row, []) for row in drawn(10)]
    costs = [measure(cognate(threshold), encoded).operations for threshold in (0.05, 0.5, 0.95)]
    assert costs[0] < costs[1] < costs[2]
    assert measure(cognate(0.5), encoded).n_bytes == measure(cognate(0.95), encoded).n_bytes


def test_a_model_that_fails_is_left_as_it_was_found():
    model = Stack().train()
    model.down.weight = nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(RuntimeError):
        measure(model, [(row, []) for row in drawn(2)])
    assert model.training and not model.up._forward_hooks
