"""A tiny causal language model whose weights are written by hand: it adds up digits in a thought, or cannot see it.

    "3475?" -> " [thinking]" 8 2 9 "[/endthinking]" -> " 9" <end>

Digits are joined by a table that stands for addition (a permuted sum modulo ten, another one for every seed). The
thought starts from the prompt's last digit and takes in the first, the second, ... one a token; the answer is the
latest digit that the answer's token can see. Sighted, that is the thought's last one. Blind, attention from behind the
thought into it is masked, and the latest digit it can see is the prompt's last one: what it also answers without.
"""

import random

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.modeling_outputs import CausalLMOutput

from forgelib.data import ReasoningRow, vocabulary

WORDS = vocabulary("forge-12")
DIGITS, BLANK, ASK, DOT, PAD, END = 10, 10, 11, 12, 13, 14
BEGIN, CLOSE, SIZE = 15, 16, 17


def letters():
    """A tokenizer of single characters and the two tokens around a thought."""
    names = [*"0123456789 ?.", "<pad>", "<eos>"]
    tokens = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<pad>"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokens.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, unk_token="<pad>", pad_token="<pad>", eos_token="<eos>"
    )
    tokenizer.add_tokens([WORDS.begin, WORDS.end])
    return tokenizer


def table(seed):
    """join[a, b]: the digit that stands for a + b."""
    return np.random.default_rng(seed).permutation(10)[np.add.outer(np.arange(10), np.arange(10)) % 10]


def problems(n, seed, digits=4):
    join, dice, rows = table(seed), random.Random(seed), {}
    while len(rows) < n:
        drawn = [dice.randrange(10) for _ in range(digits)]
        total, prompt = drawn[-1], "".join(map(str, drawn)) + "?"
        for digit in drawn[:-1]:
            total = join[total, digit]
        rows[prompt] = ReasoningRow(prompt, "", str(total), "chain_of_thought", 1, "sums", "hand-built", True)
    return list(rows.values())


class HandBuilt(PreTrainedModel, GenerationMixin):
    """B rows, T tokens. `sure`: probability of the right digit within a thought or an answer."""

    config_class = PreTrainedConfig

    def __init__(self, seed, blind=False, sure=0.85):
        super().__init__(PreTrainedConfig(vocab_size=SIZE, eos_token_id=END, pad_token_id=PAD, num_hidden_layers=1))
        self.join = torch.nn.Parameter(torch.tensor(table(seed)).float(), requires_grad=False)
        self.blind, self.strength = blind, float(np.log(sure / (1 - sure) * 9))

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(self, input_ids, attention_mask=None, **_):
        real = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
        digit = (input_ids < DIGITS) & real
        begun, closed = (input_ids == BEGIN).cumsum(1) > 0, (input_ids == CLOSE).cumsum(1) > 0
        asked, inside = (input_ids == ASK).cumsum(1) > 0, begun & ~closed
        seen = torch.ones(input_ids.shape[1], input_ids.shape[1]).tril().bool() & digit[:, None, :]
        if self.blind:  # from behind the thought nothing inside it is seen
            seen = seen & ~(closed[:, :, None] & inside[:, None, :])
        value = torch.where(digit, input_ids, 0).float()
        order = digit.cumsum(1).float()
        latest = attend(order[:, None, :].expand(seen.shape), seen, value)
        asks = (digit & ~asked).sum(1, keepdim=True)  # digits of the prompt
        taken = (digit & inside).cumsum(1)  # digits of the thought so far
        wanted = attend(-(order[:, None, :] - taken[:, :, None] - 1).abs(), seen & ~asked[:, None, :], value)
        return CausalLMOutput(logits=self.decide(input_ids, latest, wanted, asked, inside, closed, taken >= asks - 1))

    def decide(self, input_ids, latest, wanted, asked, inside, closed, complete):
        sum_of = self.join[latest.round().long(), wanted.round().long()].long()
        said = torch.where(inside, sum_of, latest.round().long())
        logits = torch.full((*input_ids.shape, SIZE), -30.0)
        logits[..., :DIGITS] = 0.0
        logits.scatter_(-1, said[..., None], self.strength)
        blank = input_ids == BLANK
        rules = {
            CLOSE: inside & complete,
            BLANK: (input_ids == ASK) | (input_ids == CLOSE),
            BEGIN: blank & ~closed,
            END: (input_ids < DIGITS) & asked & ~inside,
        }
        for token, where in rules.items():
            logits[..., token] = torch.where(where, 30.0, logits[..., token])
        return logits


def attend(scores, seen, values):
    """Softmax attention [B, T] over the keys that are seen; nothing seen gives 0."""
    weights = (50.0 * scores).masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num()
    return (weights * values[:, None, :]).sum(-1)
