"""Keys and passwords of whoever runs the workbook are in nothing that it writes."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from forgelib.workbook import params, publish
from forgelib.workbook.params import CognateTrain, ParameterError, resolve
from forgelib.workbook.runner import run_plan

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("OPENROUTER_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY")
#: A notebook that does what a training notebook does: a run with a mirror in W&B, a gate, an artifact, its parameters.
WORK = """
import os
from forgelib.core.gates import Check, Gate
from forgelib.core.run import open_run
assert all(os.environ[name] for name in {names!r}), "the kernel has them"
run = open_run("00_environment", p.model_dump(), seed=p.seed, tags={{"profile": p.profile}}, wandb_mode="offline")
for step in range(3):
    run.tracker.log({{"step": step, "loss": 1.0}})
publish.provenance(p, run=run.key[:12], wandb_mode="offline")
publish.gate(Gate("Environment", [Check("loss", 0.5, 1.0, "<")]))
publish.artifact(run.publish("thing", lambda folder: (folder / "config.json").write_text("{{}}")))
"""


@pytest.fixture
def planted(monkeypatch) -> list[str]:
    """Values in the environment that no file may hold. They have the length and the letters of real ones."""
    values = {name: f"{n}d5ecre7" + "f3c0ffee" * 4 for n, name in enumerate(NAMES)}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return list(values.values())


def holding(folder: Path, values: list[str]) -> list[Path]:
    """Files below a folder, links left out, that hold one of the values."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 5
    return [path for path in files if any(value.encode() in path.read_bytes() for value in values)]


@pytest.mark.slow
def test_no_file_of_a_run_holds_a_key(house, write_chapter, planted, tmp_path, capfd, monkeypatch):
    """Executed notebook, run.json, journal, artifact, W&B folders and logs, reports, and what is printed."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    write_chapter("00_environment", WORK.format(names=NAMES))
    run_plan({"profile": "smoke"})
    wrote = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert {".ipynb", ".json", ".jsonl", ".html", ".wandb", ".log", ".yaml"} <= wrote
    assert holding(tmp_path, planted) == []
    said = "".join(capfd.readouterr())
    assert "done" in said and not any(value in said for value in planted)

    (tmp_path / "careless.log").write_text(f"key {planted[0]}")
    assert [path.name for path in holding(tmp_path, planted)] == ["careless.log"], "the search can find one"


@pytest.mark.parametrize("name", ["HF_TOKEN", "openrouter_api_key", "wandb_key", "my_password", "secret", "auth"])
def test_a_parameter_named_like_a_secret_is_refused_without_its_value(name):
    with pytest.raises(ParameterError) as caught:
        resolve(CognateTrain, {name: "hunter2", "profile": "laptop"})
    text = str(caught.value)
    assert f"{name}: there is no such parameter" in text and "environment variable" in text and "hunter2" not in text


@pytest.mark.parametrize("name", ["tokens_per_steps", "max_new_tokenz", "monkey", "keys_at_once", "tokenizer"])
def test_other_unknown_names_are_shown_with_their_value(name):
    with pytest.raises(ParameterError, match=rf"{name} = 77: there is no such parameter"):
        resolve(CognateTrain, {name: 77, "profile": "laptop"})


def test_no_knob_of_any_notebook_is_named_like_a_secret():
    """So none can be stored: what `publish.provenance` shows and W&B gets are these fields and named digests."""
    fields = {field for model in params.MODELS.values() for field in model.model_fields}
    assert [field for field in fields if params.SECRET.search(field)] == []
    assert "model_dump" in publish.provenance.__code__.co_names


VALUE = "sk-5ecre7" + "f3c0ffee" * 4


def papermill(command: list[str], *given: str, **environment: str) -> subprocess.CompletedProcess:
    """papermill by hand, from the folder of the notebooks."""
    return subprocess.run(
        [sys.executable, *command, *given],
        cwd=ROOT / "notebooks",
        env={**os.environ, "FORGE_PROFILE": "smoke", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def announced(tmp_path) -> str:
    """A PYTHONPATH on which papermill finds what pyproject.toml announces to it, as in an installed package."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["papermill.engine"]
    info = tmp_path / "path" / "announced_here-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: announced-here\nVersion: 0\n")
    lines = "".join(f"{name} = {place}\n" for name, place in points.items())
    (info / "entry_points.txt").write_text(f"[papermill.engine]\n{lines}")
    return os.pathsep.join(filter(None, [str(info.parent), str(ROOT), os.environ.get("PYTHONPATH")]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        ["-p", "api_key", VALUE],
        ["-p", "rows", "20", "-r", "HF_TOKEN", VALUE],
        ["-y", f"{{password: {VALUE}}}"],
        ["-p", "reasoning_file", f"{VALUE}.jsonl"],
    ],
    ids=["name", "raw", "yaml", "value"],
)
def test_papermill_by_hand_writes_no_key_anywhere(given, announced, tmp_path):
    command = ["-m", "papermill", "30_quietstar_bake.ipynb", str(tmp_path / "out.ipynb")]
    done = papermill(command, *given, PYTHONPATH=announced, OPENROUTER_API_KEY=VALUE)
    assert done.returncode == 1 and "Nothing was written. Keys and passwords are read from" in done.stderr
    assert "Traceback" not in done.stderr and VALUE not in done.stdout + done.stderr
    assert not (tmp_path / "out.ipynb").exists()


def test_other_parameters_become_the_cell_that_papermill_would_make():
    from papermill.translators import PythonTranslator

    from forgelib.workbook.papermill_guard import Keyless

    for model in params.MODELS.values():
        values = {name: field.default for name, field in model.model_fields.items()}
        assert Keyless.codify(values) == PythonTranslator.codify(values)


@pytest.mark.slow
def test_where_papermill_is_not_guarded_the_notebook_refuses_and_says_what_to_delete(tmp_path):
    """A papermill of another environment: the first cell that looks at the parameters comes after the writing."""
    code = (
        "import sys, papermill.__main__ as command\n"
        "from papermill.translators import PythonTranslator, papermill_translators\n"
        "papermill_translators.register('python', PythonTranslator)\n"
        "command.papermill()"
    )
    done = papermill(["-c", code, "00_environment.ipynb", str(tmp_path / "out.ipynb")], "-p", "HF_TOKEN", VALUE)
    assert done.returncode == 1 and "HF_TOKEN: there is no such parameter" in done.stderr
    assert "already written the value to its output notebook" in done.stderr
    assert VALUE not in done.stdout + done.stderr
