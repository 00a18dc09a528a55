"""The command refuses what it cannot do in one sentence, and finds runs by enough of their name."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from forgelib import cli
from forgelib.core.paths import runs_dir
from forgelib.workbook.params import ParameterError


def forge(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a forge command, run in this process."""
    old, sys.argv = sys.argv, ["forge", *arguments]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = old
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.fixture
def run_folders() -> Path:
    folder = runs_dir() / "runs"
    for name, steps in {"11_cognate_train-memory-0a1b": 3, "11_cognate_train-speed-9f8e": 0}.items():
        (folder / name).mkdir(parents=True)
        if steps:
            records = [json.dumps({"step": step, "loss": 1.0}) for step in range(steps)]
            (folder / name / "metrics.jsonl").write_text("\n".join([*records, '{"step": 3, "lo']))
    return folder


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["run", "--profile", "nope"], ["profile = 'nope'", "smoke, laptop, gpu6gb, full"]),
        (["run", "--data", "rael"], ["data = 'rael'", "auto, real, procedural", "did you mean 'real'"]),
        (["run", "--seed", "-1"], ["seed = -1", "at least 0"]),
        (["run", "--only", "77"], ["--only 77", "00_environment"]),
        (["report", "--profile", "full"], ["nothing was run yet", "forge run"]),
        (["pause", "nothing"], ["'nothing' is no run"]),
        (["lineage", "abc"], ["0 artifacts", "forge artifacts"]),
    ],
)
def test_refusals_are_one_sentence_and_exit_code_2(capsys, monkeypatch, arguments, words):
    monkeypatch.delenv("FORGE_PROFILE", raising=False)
    code, _, err = forge(capsys, *arguments)
    assert code == 2 and err.startswith("forge: ") and "Traceback" not in err
    assert all(word in err for word in words), err


def test_runs_lists_the_last_whole_step(capsys, run_folders):
    code, out, _ = forge(capsys, "runs")
    assert code == 0
    memory, speed = sorted(out.splitlines(), key=lambda line: "speed" in line)
    assert "step 2" in memory and memory.endswith("11_cognate_train-memory-0a1b")
    assert "no step" in speed


@pytest.mark.parametrize("command", [["runs"], ["artifacts"], ["artifacts", "--name", "trunk"]])
def test_an_empty_list_says_how_to_fill_it(capsys, command):
    code, out, err = forge(capsys, *command)
    assert code == 0 and out == "" and "forge run" in err and str(runs_dir()) in err


def test_a_run_is_found_by_enough_of_its_name(run_folders):
    assert cli._one_run("memory").name == "11_cognate_train-memory-0a1b"
    assert cli._one_run(str(run_folders / "11_cognate_train-speed-9f8e")).name.endswith("9f8e")
    with pytest.raises(ParameterError, match=r"'11_cognate' fits several runs; there are: .*memory.*, .*speed"):
        cli._one_run("11_cognate")
    with pytest.raises(ParameterError, match="is no run"):  # a folder, but no run's
        cli._one_run(str(run_folders.parent))


def test_the_version_is_told(capsys):
    assert forge(capsys, "--version")[:2] == (0, f"forge {metadata.version('forgelib')}\n")


def test_pause_resume_and_stop_reach_the_run(capsys, run_folders):
    from forgelib.core.loop import Control

    control = Control(run_folders / "11_cognate_train-memory-0a1b")
    for wish in ("pause", "resume", "stop"):
        code, out, _ = forge(capsys, wish, "memory")
        assert code == 0 and wish in out
        assert control.read() == {"pause": "pause", "resume": "run", "stop": "stop"}[wish]


def test_lineage_shows_an_artifact_and_what_it_was_made_from(capsys):
    from forgelib.core.artifacts import draft
    from forgelib.core.registry import Registry

    made = []
    for name in ("trunk", "cognate-memory"):
        with draft(runs_dir() / "artifacts", name) as folder:
            (folder.path / "notes.json").write_text("{}")
            made.append(folder.publish(step="11", key=name, params={}, parents=made[:1], seed=0, verdicts=[], tags={}))
        Registry(runs_dir()).add(made[-1].path, made[-1].manifest, made[-1].digest)
    code, out, _ = forge(capsys, "lineage", made[1].digest[:10])
    child, parent = out.splitlines()
    assert code == 0 and "cognate-memory" in child and parent.startswith("  ") and "trunk" in parent
    _, out, _ = forge(capsys, "artifacts", "--name", "trunk")
    assert made[0].digest[:12] in out and len(out.splitlines()) == 1


def test_the_installed_command_is_quick_to_refuse():
    done = subprocess.run(
        [sys.executable, "-c", "from forgelib.cli import main; main()", "run", "--profile", "nope"],
        capture_output=True,
        text=True,
        timeout=10,
    )
    assert done.returncode == 2 and "profile = 'nope'" in done.stderr
