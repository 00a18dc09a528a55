"""`forge rows`: four makers, one file; what cannot be made is refused before anything is written."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from forgelib.cli import app
from forgelib.data import DataError, read_rows, vocabulary
from forgelib.data.tokenizer import train_bpe
from forgelib.models import CognateConfig, CognateForCausalLM
from forgelib.workbook.params import ParameterError
from forgelib.workbook.row_making import Asked, make_rows


def asked(folder, **changes):
    facts = {"maker": "procedural", "rows": 30, "vocabulary": "forge-12", "difficulty": 1, "seed": 0}
    return Asked(folder, **{**facts, "model": None, "cost_limit": 1.0, **changes})


def test_procedural_rows_by_the_command_line(tmp_path):
    done = CliRunner().invoke(app, ["rows", "--out", str(tmp_path / "mine"), "--rows", "30", "--vocabulary", "forge-8"])
    assert done.exit_code == 0, done.output
    rows, skipped = read_rows(tmp_path / "mine" / "rows.jsonl", vocabulary("forge-8"))
    assert len(rows) == 30 and skipped == [] and "30 rows, every line checked" in done.output


@pytest.mark.parametrize(
    "changes, error, told",
    [
        ({"maker": "oracle"}, ParameterError, "--maker oracle: must be one of procedural, openrouter, local, dataset"),
        ({"maker": "local"}, ParameterError, "--model names the folder"),
        ({"model": "x"}, ParameterError, "--model names the folder"),
        ({"vocabulary": "forge-9"}, ValueError, "'forge-9' is unknown"),
        ({"maker": "openrouter"}, DataError, "OPENROUTER_API_KEY is not set"),
        ({"maker": "openrouter", "cost_limit": 0.0}, DataError, "cost_limit is 0"),
        ({"maker": "local", "model": "nowhere"}, DataError, "is no folder"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, monkeypatch, changes, error, told):
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    with pytest.raises(error, match=told):
        make_rows(asked(tmp_path / "mine", **changes), lambda line: None)
    assert not (tmp_path / "mine").exists()


def test_rows_of_a_dataset_with_worked_solutions(tmp_path, monkeypatch, real_datasets):
    monkeypatch.setenv("FORGE_DATASETS", str(real_datasets))
    path = make_rows(asked(tmp_path / "mine", maker="dataset"), lambda line: None)
    assert len(read_rows(path, vocabulary("forge-12"))[0]) == 30


def test_rows_that_others_made_are_not_written_over(tmp_path):
    paid = tmp_path / "paid"
    paid.mkdir()
    (paid / "rows.jsonl").write_text("bought\n")
    with pytest.raises(ParameterError, match="rows of another maker"):
        make_rows(asked(paid), lambda line: None)
    assert (paid / "rows.jsonl").read_text() == "bought\n"

    path = make_rows(asked(tmp_path / "mine"), lambda line: None)
    with pytest.raises(ParameterError, match="begun with another seed"):
        make_rows(asked(tmp_path / "mine", seed=4), lambda line: None)
    make_rows(asked(tmp_path / "mine", rows=40), lambda line: None)
    assert len(read_rows(path, vocabulary("forge-12"))[0]) == 40, "more of the same rows are no other question"


def test_a_file_where_a_folder_is_asked_for_is_named(tmp_path):
    (tmp_path / "mine").write_text("notes")
    with pytest.raises(ParameterError, match="is a file; name a folder"):
        make_rows(asked(tmp_path / "mine"), lambda line: None)
    assert (tmp_path / "mine").read_text() == "notes"


def test_a_process_of_its_own_can_read_one_of_our_own_models(tmp_path):
    """Cognate is no model of transformers: whoever reads one has to register it first."""
    model = CognateForCausalLM(CognateConfig(vocab_size=300, d_model=16, d_ff=32, n_layers=1, n_heads=2))
    model.save_pretrained(tmp_path / "model")
    train_bpe(["Question: 1+2? Answer: 3"] * 4, 300)[0].save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", "from forgelib.cli import main; main()", "rows", "--maker", "local", "--rows", "6"]
    command += ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "rows")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "200 texts in a row and none was a valid row" in done.stderr, done.stderr
