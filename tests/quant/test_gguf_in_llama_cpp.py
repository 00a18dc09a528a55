"""llama.cpp itself reads the GGUF file: what it finds likely after each token, and how it cuts text into tokens."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_export_gguf import packed
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from forgelib.quant import GGUF_KINDS, save_gguf
from forgelib.quant.gguf_tokenizer import tokenizer_fields

TEXT = "the cat sat on 3 of 42 mats, didn't it?"
SPLITTERS = {"gpt-2": [ByteLevel(add_prefix_space=False)]}
SPLITTERS["smollm"] = [Digits(individual_digits=True), *SPLITTERS["gpt-2"]]


def tokenizer(splitter="smollm"):
    """Merges of digits as well, which only one of the splitters lets happen."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    texts = ["the cat sat on the mat, it's 1212 + 3042 = 4254; why?  naïve café\n\n日本語"] * 50
    alphabet = ByteLevel.alphabet()
    made.train_from_iterator(texts, BpeTrainer(vocab_size=340, initial_alphabet=alphabet, special_tokens=["<end>"]))
    made.pre_tokenizer, made.decoder = Sequence(SPLITTERS[splitter]), ByteLevelDecoder()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    fast.add_tokens(["<step>", "</step>"])
    return fast


def texts(n):
    """Texts of pieces that splitters and merges may take differently, in any order."""
    pieces = ["the", "cat", "A", "12", "3042", "'s", "'T", "n't", "_", "...", "x=1;", "<step>", "</step>"]
    pieces += [" ", "  ", "\n", "\t", "\r\n", "\u00a0", "é", "ï", "e\u0301", "日本", "²", "٣", "☃", "—", "🙂"]
    draw = random.Random(0)
    return ["".join(draw.choices(pieces, k=draw.randrange(1, 12))) for _ in range(n)]


def read(file, ids=(), texts=()):
    """What llama.cpp finds in the file, see llama_cpp.py."""
    script = Path(__file__).with_name("llama_cpp.py")
    asked = json.dumps({"ids": list(ids), "texts": list(texts)})
    done = subprocess.run([sys.executable, script, file], input=asked, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", GGUF_KINDS)
@pytest.mark.parametrize("changed", [{}, {"tie_word_embeddings": True, "num_key_value_heads": 4, "per_row": False}])
def test_it_is_the_same_model(tmp_path, kind, changed):
    words = tokenizer()
    model = packed(len(words) + 3, **changed)
    save_gguf(model, tmp_path / "m.gguf", words, kind=kind)
    ids = words(TEXT)["input_ids"]
    found = torch.tensor(read(tmp_path / "m.gguf", ids)["logprobs"])
    with torch.no_grad():
        ours, before = (model(torch.tensor([part])).logits[0].log_softmax(-1) for part in (ids, ids[:-1]))
    near, far = (found - ours).abs().mean(1), (found[1:] - before).abs().mean(1)
    assert near.max() < 0.1 and 5 * near.max() < far.min(), "far, the control: a token late"


@pytest.mark.parametrize("splitter", SPLITTERS)
def test_it_cuts_text_as_our_tokenizer_does(tmp_path, splitter):
    words = tokenizer(splitter)
    assert tokenizer_fields(words, len(words))[0].pre == splitter
    save_gguf(packed(len(words)), tmp_path / "m.gguf", words)
    asked = [TEXT, *texts(200)]
    found = read(tmp_path / "m.gguf", texts=asked)["tokenized"]
    assert dict(zip(asked, found, strict=True)) == {text: words(text)["input_ids"] for text in asked}
