"""`forge evo` over three small Llama folders: a champion that reloads, a search that continues, plain refusals."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from forgelib import cli
from forgelib.data.procedural import TWINS, draw
from forgelib.data.tokenizer import load_or_train_tokenizer
from forgelib.workbook.evo import _named

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A trunk and three siblings of it, each pushed another way."""
    root = tmp_path_factory.mktemp("llamas")
    name, twin = next(iter(TWINS.items()))
    texts = [f"{prompt} {answer}" for prompt, answer in draw(twin, name, "train", 200, 0)]
    tokenizer, _ = load_or_train_tokenizer(texts, 320, "never")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    model.save_pretrained(root / "trunk")
    for i, folder in enumerate(NAMES):
        torch.manual_seed(i + 1)
        sibling = LlamaForCausalLM.from_pretrained(root / "trunk")
        for parameter in sibling.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
        sibling.save_pretrained(root / folder)
        tokenizer.save_pretrained(root / folder)
    return root


def evo(monkeypatch, root: Path, out: Path, *more: str, models: tuple[str, ...] = NAMES) -> int:
    """`forge evo` as the shell calls it; its exit code."""
    named = ",".join(str(root / name) for name in models)
    options = ["--gens", "2", "--data", "procedural", "--workers", "1", "--trunk", str(root / "trunk"), *more]
    monkeypatch.setattr("sys.argv", ["forge", "evo", "--base-models", named, "--out", str(out), *options])
    with pytest.raises(SystemExit) as ended:
        cli.main()
        raise SystemExit(0)
    return ended.value.code or 0


@pytest.mark.slow
def test_three_llamas_make_a_champion_that_reloads_and_a_search_that_continues(folders, tmp_path, monkeypatch, capsys):
    assert evo(monkeypatch, folders, tmp_path / "out") == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "champion" in said and "ended: all generations done" in said
    assert "measured on 16 datasets: 16 procedural" in said and "champion over the best parent (" in said
    champion = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "champion")
    assert all(bool(p.isfinite().all()) for p in champion.parameters())
    standing = {row["model"]: row for row in json.loads((tmp_path / "out" / "standing.json").read_text())}
    assert {"champion", *NAMES, "trunk", "ensemble of the parents"} <= set(standing)
    assert sum(standing[name]["fitness"] for name in NAMES) / 3 == pytest.approx(1, abs=1e-3)

    ledger = (tmp_path / "out" / "evaluations.jsonl").read_bytes()
    genome = (tmp_path / "out" / "champion" / "genome.json").read_bytes()
    assert evo(monkeypatch, folders, tmp_path / "out") == 0
    assert (tmp_path / "out" / "evaluations.jsonl").read_bytes() == ledger, "nothing is measured twice"
    assert (tmp_path / "out" / "champion" / "genome.json").read_bytes() == genome


def test_folders_of_one_name_stay_apart():
    """Our own artifacts all end in /model."""
    assert list(_named((Path("a/model"), Path("b/model"), Path("c")))) == ["a/model", "b/model", "c"]


def refusal(monkeypatch, capsys, root: Path, out: Path, *more: str, models: tuple[str, ...] = NAMES) -> str:
    capsys.readouterr()  # saving a model draws a bar
    assert evo(monkeypatch, root, out, *more, models=models) == 2
    said = capsys.readouterr().err
    assert said.startswith("forge: ") and "Traceback" not in said
    assert not (out / "evaluations.jsonl").exists(), "nothing was begun"
    return said


def test_what_cannot_be_merged_is_refused_before_any_work(folders, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert "at least two" in refusal(monkeypatch, capsys, folders, out, models=("a",))
    assert "at least two" in refusal(monkeypatch, capsys, folders, out, models=())
    assert "missing" in refusal(monkeypatch, capsys, folders, out, models=("a", "nowhere"))
    assert "named more than once" in refusal(monkeypatch, capsys, folders, out, models=("a", "b", "b/../a"))
    assert "--strategy" in refusal(monkeypatch, capsys, folders, out, "--strategy", "luck")

    broken = tmp_path / "broken"
    shutil.copytree(folders / "b", broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged or cut short" in refusal(monkeypatch, capsys, folders, out, models=("a", str(broken)))

    shutil.copytree(folders / "b", broken, dirs_exist_ok=True)
    for text in ("{", "[]", '{"model_type": "nothing known"}'):
        (broken / "config.json").write_text(text)
        for models in (("a", str(broken)), (str(broken), "a")):
            assert "config.json cannot be read" in refusal(monkeypatch, capsys, folders, out, models=models)

    wide = tmp_path / "wide"
    LlamaForCausalLM(
        LlamaConfig(**{**json.loads((folders / "a" / "config.json").read_text()), "hidden_size": 32})
    ).save_pretrained(wide)
    assert "hidden_size is 16" in refusal(monkeypatch, capsys, folders, out, models=("a", str(wide)))

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folders / "a" / name).rename(tmp_path / name)
    try:
        assert "no tokenizer" in refusal(monkeypatch, capsys, folders, out)
    finally:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).rename(folders / "a" / name)
