"""Tokens: lossless, digits singly, prompt and answer apart, packed without loss."""

import pytest
import torch

from forgelib.data import DataError, Example, encode_examples, load_or_train_tokenizer, pack

TEXTS = ["Question: What is 12 + 30?\nAnswer: 42", "The crow flew over the lake.", "naïve café — 東京 🦉"] * 30


@pytest.fixture(scope="module")
def tokenizer():
    return load_or_train_tokenizer(TEXTS, 400)[0]


@pytest.mark.parametrize("text", [*TEXTS[:3], "unseen: ÿ \t\n  two  blanks"])
def test_every_text_survives(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_are_single_tokens(tokenizer):
    assert [tokenizer.decode(one) for one in tokenizer("2047")["input_ids"]] == ["2", "0", "4", "7"]


def test_the_frame_of_a_prompt_is_one_token_a_word(tokenizer):
    ids = tokenizer("Question:\nA.\nB.\nAnswer:")["input_ids"]
    assert [tokenizer.decode(one) for one in ids] == ["Question:", "\nA.", "\nB.", "\nAnswer:"]


def test_size_end_and_padding(tokenizer):
    assert len(tokenizer) <= 400
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 0


def test_training_is_deterministic():
    again = load_or_train_tokenizer(TEXTS, 400)[0]
    assert again.backend_tokenizer.to_str() == load_or_train_tokenizer(TEXTS, 400)[0].backend_tokenizer.to_str()


def test_a_saved_tokenizer_is_taken_and_a_missing_one_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "mine")
    loaded, description = load_or_train_tokenizer([], 400, tmp_path / "mine")
    assert loaded("crow 12")["input_ids"] == tokenizer("crow 12")["input_ids"]
    assert "mine" in description
    with pytest.raises(DataError, match="save_pretrained"):
        load_or_train_tokenizer([], 400, tmp_path / "none")


def test_without_gpt2_auto_trains_its_own_and_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    tokenizer, description = load_or_train_tokenizer(TEXTS, 400, "auto")
    if len(tokenizer) != 50257:  # a machine that has GPT-2 in its cache takes it
        assert "BPE" in description and "GPT-2" in description


@pytest.mark.parametrize("texts, size, message", [(TEXTS, 100, "at least 265"), ([], 400, "no text")])
def test_what_cannot_be_trained_is_refused(texts, size, message):
    with pytest.raises(DataError, match=message):
        load_or_train_tokenizer(texts, size)


def test_prompt_and_answer_are_encoded_apart(tokenizer):
    example = Example("Question: What is 12 + 30?\nAnswer:", "42", "math", "gsm8k", "procedural")
    ((prompt, answer),) = encode_examples(tokenizer, [example])
    assert prompt == tokenizer(example.prompt)["input_ids"], "what is asked at test time is what was trained on"
    assert tokenizer.decode(prompt + answer) == example.text == "Question: What is 12 + 30?\nAnswer: 42"


def test_packing_loses_nothing_and_pads_nothing():
    documents = [[5, 6, 7], [8], [9, 10, 11, 12]]
    packed = pack(documents, 4, eos_id=0)
    assert packed.dtype == torch.int32 and packed.shape == (3, 4)
    assert packed.flatten().tolist() == [5, 6, 7, 0, 8, 0, 9, 10, 11, 12, 0, 5]


def test_one_short_document_fills_its_row_by_repetition():
    assert pack([[3, 4]], 8, eos_id=0).tolist() == [[3, 4, 0, 3, 4, 0, 3, 4]]


def test_nothing_to_pack_is_refused():
    with pytest.raises(DataError, match="no documents"):
        pack([], 8, eos_id=0)
    with pytest.raises(DataError, match="seq_len is 1"):
        pack([[1]], 1, eos_id=0)
