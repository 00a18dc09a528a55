"""A thinking vocabulary on any model: old logits as they were, ties kept, tokens of one piece."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, Qwen2Config

from forgelib.data import vocabulary
from forgelib.data.thinking import VOCABULARIES
from forgelib.data.tokenizer import train_bpe
from forgelib.models import CognateConfig
from forgelib.thoughts import add_vocabulary

TEXTS = ["Question: What is 3 + 4?\nAnswer: 7", "a <step> b <think> c", "the quick brown fox"] * 20
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "llama": lambda n: LlamaConfig(vocab_size=n, num_key_value_heads=2, **SMALL),
    "llama, tied": lambda n: LlamaConfig(vocab_size=n, num_key_value_heads=2, tie_word_embeddings=True, **SMALL),
    "gpt2": lambda n: GPT2Config(vocab_size=n, n_embd=32, n_layer=2, n_head=2, n_positions=64),
    "qwen2": lambda n: Qwen2Config(vocab_size=n, num_key_value_heads=2, **SMALL),
    "qwen2, more rows than tokens": lambda n: Qwen2Config(vocab_size=n + 5, num_key_value_heads=2, **SMALL),
    "cognate": lambda n: CognateConfig(vocab_size=n, d_model=32, d_ff=48, n_layers=2, n_heads=2, window=16),
}


def pair(name):
    tokenizer, _ = train_bpe(TEXTS, 300)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name](len(tokenizer))).eval(), tokenizer


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("preset", VOCABULARIES)
def test_old_tokens_keep_their_ids_and_logits(name, preset, tmp_path):
    model, tokenizer = pair(name)
    had, rows, text = len(tokenizer), model.get_input_embeddings().weight.shape[0], TEXTS[0]
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    before = model(input_ids=ids).logits.detach()
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    words = vocabulary(preset)
    added = add_vocabulary(model, tokenizer, words)
    assert added.new == words.tokens and sorted(added.ids.values()) == list(range(had, had + len(words.tokens)))
    assert added.rows == (rows, max(rows, had + len(words.tokens)))
    assert tokenizer(text)["input_ids"] == ids[0].tolist()
    after = model(input_ids=ids).logits.detach()
    assert float((after[..., :had] - before[..., :had]).abs().max()) < 1e-5
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, read = AutoModelForCausalLM.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=ids).logits, after) and read.convert_tokens_to_ids(words.begin) == had
    assert again.config.vocab_size == added.rows[1]


def test_a_tag_is_one_token_wherever_it_stands_and_is_shown_when_decoded():
    model, tokenizer = pair("llama")
    words = vocabulary("forge-12")
    ids = add_vocabulary(model, tokenizer, words).ids
    text = f"Answer: {words.write([('<step>', '3 + 4 = 7'), ('<doubt>', '7 - 4 = 3 yes')])} 7"
    encoded = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [encoded.count(ids[token]) for token in ("[thinking]", "<step>", "<doubt>", "[/endthinking]")] == [1] * 4
    assert tokenizer.decode(encoded, skip_special_tokens=True) == text


def test_a_second_time_nothing_changes():
    model, tokenizer = pair("cognate")
    words = vocabulary("forge-12")
    first = add_vocabulary(model, tokenizer, words)
    weights = model.get_input_embeddings().weight.detach().clone()
    second = add_vocabulary(model, tokenizer, words)
    assert second.new == () and second.ids == first.ids and second.rows == (first.rows[1], first.rows[1])
    assert torch.equal(weights, model.get_input_embeddings().weight)


def test_new_rows_start_at_the_mean_or_at_named_words_and_differ():
    model, tokenizer = pair("llama")
    had, old = len(tokenizer), model.get_input_embeddings().weight.detach().clone()
    words = vocabulary("forge-12")
    ids = add_vocabulary(model, tokenizer, words, like={"<step>": " quick"}).ids
    new = model.get_input_embeddings().weight.detach()
    spread = float(old[:had].std(0).norm())
    named = old[tokenizer(" quick", add_special_tokens=False)["input_ids"]].mean(0)
    assert float((new[ids["<mece>"]] - old[:had].mean(0)).norm()) < 0.03 * spread
    assert float((new[ids["<step>"]] - named).norm()) < 0.03 * spread < float((named - old[:had].mean(0)).norm())
    assert len({tuple(new[i].tolist()) for i in ids.values()}) == 12


def test_what_does_not_fit_is_refused():
    model, tokenizer = pair("llama")
    with pytest.raises(ValueError, match="<think> is no token of forge-12"):
        add_vocabulary(model, tokenizer, vocabulary("forge-12"), like={"<think>": "a"})
    with pytest.raises(ValueError, match="the text for <step> has no tokens"):
        add_vocabulary(model, tokenizer, vocabulary("forge-12"), like={"<step>": ""})
    tokenizer.add_tokens([f"<{i}>" for i in range(9)])
    with pytest.raises(ValueError, match="do not belong together"):
        add_vocabulary(model, tokenizer, vocabulary("forge-12"))
