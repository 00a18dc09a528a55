"""`forge run` runs what is new, reuses what holds, stops at a failure in plain words, and always writes its reports."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forgelib.core.run import latest_artifact
from forgelib.workbook import plan, runner
from forgelib.workbook.console import Console
from forgelib.workbook.params import ParameterError
from forgelib.workbook.plan import Step, notebook_digest, select, step_keys
from forgelib.workbook.runner import RunFailed, _what_next, executed_dir, read_record, run_plan

SMOKE = {"profile": "smoke"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def no_kernel(monkeypatch):
    """Any attempt to start a kernel fails the test."""
    from forgelib.workbook import execute

    def refuse(*arguments):
        raise AssertionError("a kernel was started")

    monkeypatch.setattr(execute, "execute", refuse)


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(Console, "say", lambda self, text: said.append(text))
    return said


def test_step_names_tell_siblings_apart():
    names = [step.name for step in plan.PLAN]
    assert names[2:5] == ["11_cognate_train-reasoning", "11_cognate_train-memory", "11_cognate_train-speed"]
    assert len(set(names)) == len(names)
    assert all(set(step.needs) < set(names) for step in plan.PLAN)


def test_a_mirror_that_is_not_there_is_refused_before_any_kernel_starts(house, no_kernel, monkeypatch, tmp_path):
    monkeypatch.setenv("FORGE_DATASETS", str(tmp_path / "nowhere"))
    with pytest.raises(ParameterError, match="nowhere is no folder: correct FORGE_DATASETS"):
        run_plan(SMOKE)


def test_folders_named_from_where_the_command_is_given_are_those_of_its_notebooks(house, write_chapter, tmp_path):
    """A notebook's kernel starts in notebooks/, where ../rows is another folder."""
    (tmp_path / "rows").mkdir()
    look = "from forgelib.core.paths import datasets_mirror, runs_dir\nprint(datasets_mirror(), runs_dir())"
    write_chapter("00_environment", look)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FORGE")}
    given = kept | {"FORGE_DATASETS": "../rows", "FORGE_RUNS": "../results", "PYTHONPATH": str(ROOT)}
    forge = [sys.executable, "-c", "from forgelib.cli import main; main()"]
    command = [*forge, "run", "--profile", "smoke", "--only", "00"]
    done = subprocess.run(command, cwd=house, env=given, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (notebook,) = (tmp_path / "results" / "executed").rglob("00_environment.ipynb")
    printed = [line for line in notebook.read_text().splitlines() if str(tmp_path / "rows") in line]
    assert printed and str(tmp_path / "results") in printed[0]


def test_a_page_runs_only_when_it_is_named_and_is_never_reused(house, write_chapter, monkeypatch):
    from forgelib.workbook import execute

    write_chapter("00_environment")
    write_chapter("90_dashboard")
    executed = []

    def instead(path, output, *_):
        executed.append(path.stem)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text('{"cells": []}')
        return {"cells": []}

    monkeypatch.setattr(execute, "execute", instead)
    run_plan(SMOKE)
    for n in (1, 2):
        pages = run_plan(SMOKE, only="90")
        assert executed == ["00_environment", *["90_dashboard"] * n]
    assert "phase9.html" not in [page.name for page in pages], "a report is of what was measured, not of a page"


def test_only_takes_a_prefix_and_refuses_what_is_not_there():
    assert [step.name for step in select("11", plan.PLAN)] == [step.name for step in plan.PLAN[2:5]]
    assert len(select("", plan.PLAN)) == len(plan.PLAN)
    with pytest.raises(ParameterError, match=r"no such step\. There are: 00_environment, "):
        select("77", plan.PLAN)


def test_the_key_follows_everything_a_result_rests_on(house, write_chapter, monkeypatch, tmp_path):
    write_chapter("00_environment", "1")
    write_chapter("10_cognate_data", "1", model="CognateData")
    steps = (Step("00_environment"), Step("10_cognate_data", needs=("00_environment",)))
    auto = {"profile": "smoke", "data": "auto"}
    first = step_keys(steps, auto)
    assert first == step_keys(steps, auto)
    assert first != step_keys(steps, {**auto, "seed": 1})

    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "train.jsonl.gz").write_bytes(b"rows")
    monkeypatch.setenv("FORGE_DATASETS", str(mirror))
    with_mirror = step_keys(steps, auto)
    assert with_mirror != first
    (mirror / "train.jsonl.gz").write_bytes(b"other rows")
    assert step_keys(steps, auto) != with_mirror
    assert step_keys(steps, {**auto, "data": "procedural"}) == step_keys(steps, {**auto, "data": "procedural"})

    monkeypatch.delenv("FORGE_DATASETS")
    monkeypatch.setattr(plan, "_code_digest", lambda notebook: "other code")
    assert not set(step_keys(steps, auto).values()) & set(first.values())
    monkeypatch.setattr(plan, "_code_digest", lambda notebook: "the code of this test")
    write_chapter("00_environment", "2")
    changed = step_keys(steps, auto)
    assert changed["00_environment"] != first["00_environment"]
    assert changed["10_cognate_data"] != first["10_cognate_data"], "what lies downstream is stale too"


def test_prose_changes_the_page_but_not_the_code_digest(house, write_chapter):
    path = write_chapter("00_environment", "1")
    code, page = notebook_digest("00_environment"), notebook_digest("00_environment", prose=True)
    path.write_text(path.read_text().replace("# A chapter", "# Another title"))
    assert notebook_digest("00_environment") == code
    assert notebook_digest("00_environment", prose=True) != page


def test_bad_parameters_are_refused_before_any_kernel(house, write_chapter, no_kernel):
    write_chapter("00_environment")
    for asked in ({"profile": "nope"}, {"seed": -1}, {"data": "made up"}):
        with pytest.raises(ParameterError):
            run_plan(asked)
    with pytest.raises(ParameterError, match="--reports /proc/here: cannot be made"):
        run_plan({}, reports=Path("/proc/here"))
    assert not (house / "reports").exists()


@pytest.mark.slow
def test_a_run_is_reused_until_something_changes(house, write_chapter, lines, request):
    path = write_chapter("00_environment", 'publish.publish("device", {"cores": 2})')
    pages = run_plan(SMOKE)
    assert [page.name for page in pages] == ["phase1.html", "index.html"]
    assert lines[-3].endswith("done")
    executed = executed_dir(SMOKE) / "00_environment.ipynb"
    assert executed.parent.name == "smoke-seed0-procedural"
    before = executed.read_bytes()

    request.getfixturevalue("no_kernel")
    run_plan(SMOKE)
    assert "reused" in lines[-3] and executed.read_bytes() == before

    executed.write_bytes(b"")
    with pytest.raises(AssertionError, match="a kernel was started"):
        run_plan(SMOKE)
    executed.write_bytes(before)
    path.write_text(path.read_text().replace("cores", "threads"))
    with pytest.raises(AssertionError, match="a kernel was started"):
        run_plan(SMOKE)


@pytest.mark.slow
def test_a_phase_has_its_report_before_the_next_begins_and_wandb_can_be_left_out(house, write_chapter, lines, request):
    write_chapter("00_environment", "1")
    there = f"import pathlib; assert pathlib.Path({str(house / 'reports/phase1.html')!r}).is_file()"
    write_chapter("21_evomerge_evolve", there, "publish.provenance(p)", model="EvoEvolve")
    run_plan({**SMOKE, "wandb_mode": "disabled"})
    assert [line for line in lines if line.endswith("phase1.html")] == [lines[3], lines[-3]]
    executed = json.loads((executed_dir(SMOKE) / "21_evomerge_evolve.ipynb").read_text())
    (fact,) = runner.published(executed)
    assert ["wandb_mode", "disabled"] in fact["pairs"] and not (runner.runs_dir() / "reports").exists()
    record = read_record(executed_dir(SMOKE), Step("21_evomerge_evolve"))
    assert len(record["code"]) == 16 and "torch" in record["libraries"] and record["commit"] == ""

    request.getfixturevalue("no_kernel")
    run_plan(SMOKE)
    assert lines[-4].endswith("nothing it rests on has changed"), "where records are mirrored changes no result"


def test_a_wandb_mode_goes_to_the_notebooks_that_mirror_and_a_wrong_one_is_refused():
    asked = {**SMOKE, "wandb_mode": "disabled"}
    assert "wandb_mode" not in plan.asked_of(Step("00_environment"), asked)
    assert plan.asked_of(Step("21_evomerge_evolve"), asked)["wandb_mode"] == "disabled"
    with pytest.raises(ParameterError, match=r"wandb_mode = 'cloud': must be one of offline, online, disabled"):
        step_keys(plan.PLAN, {**SMOKE, "wandb_mode": "cloud"})


def test_the_commit_is_that_of_the_checkout_and_a_plus_says_that_files_differ(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        named = ["-c", "user.name=x", "-c", "user.email=x@x"]
        done = subprocess.run(["git", "-C", str(tmp_path), *named, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.setattr(runner, "repo_root", lambda: tmp_path)
    assert runner.commit() == "", "no checkout"
    (tmp_path / "file").write_text("1")
    git("init", "-q")
    git("add", "file")
    git("commit", "-qm", "one")
    assert runner.commit() == git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "file").write_text("2")
    assert runner.commit().endswith("+")


@pytest.mark.slow
def test_a_report_says_which_chapter_is_out_of_date(house, write_chapter, lines):
    write_chapter("00_environment", "1")
    (page, _) = run_plan(SMOKE)
    assert "badge finished" in page.read_text() and "out of date" not in page.read_text()
    write_chapter("00_environment", "2")
    (page, _) = runner.write_reports(SMOKE, house / "reports")
    assert '<span class="badge out of date" title="its notebook, its code' in page.read_text()


@pytest.mark.slow
def test_a_step_whose_artifact_is_gone_runs_again(house, write_chapter, lines, request, tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    fact = {"name": "trunk", "path": str(folder), "digest": "0" * 64}
    write_chapter("00_environment", f'publish.publish("artifact", {fact!r})')
    run_plan(SMOKE)
    request.getfixturevalue("no_kernel")
    run_plan(SMOKE)
    (folder / "manifest.json").unlink()
    with pytest.raises(AssertionError, match="a kernel was started"):
        run_plan(SMOKE)


@pytest.mark.slow
def test_what_a_reused_step_made_counts_before_a_variant_made_by_hand_since(house, write_chapter, lines, request):
    make = 'from forgelib.core.run import open_run\nrun = open_run("00", {"n": N}, seed=0, tags={"part": "trunk"})'
    make += '\nmade = run.publish("trunk", lambda folder: (folder / "n.json").write_text("N"))'
    write_chapter("00_environment", make.replace("N", "1"), "publish.artifact(made)")
    run_plan(SMOKE)
    exec(make.replace("N", "2"))
    assert (latest_artifact("trunk", {"part": "trunk"}, "").path / "n.json").read_text() == "2"
    request.getfixturevalue("no_kernel")
    run_plan(SMOKE)
    assert (latest_artifact("trunk", {"part": "trunk"}, "").path / "n.json").read_text() == "1"


@pytest.mark.slow
def test_only_a_later_step_takes_up_what_it_needs_and_nothing_that_comes_after_it(house, write_chapter, lines):
    make = 'from forgelib.core.run import open_run\nrun = open_run("s", {"n": N}, seed=0, tags={"part": "P"})'
    make += '\nmade = run.publish("P", lambda folder: (folder / "n.json").write_text("N"))'
    chapters = (("10_cognate_data", "CognateData", "data"), ("11_cognate_train", "CognateTrain", "trained"))
    for name, model, part in chapters:
        code = make.replace("P", part).replace("N", "1")
        write_chapter(
            name, code if part == "data" else "made = 1", "publish.artifact(made)" * (part == "data"), model=model
        )
    run_plan(SMOKE, only="10")
    exec(make.replace("P", "data").replace("N", "2"))
    run_plan(SMOKE, only="11_cognate_train-memory")
    assert (latest_artifact("data", {"part": "data"}, "").path / "n.json").read_text() == "1"
    exec(make.replace("P", "data").replace("N", "3"))
    write_chapter("00_environment")
    run_plan(SMOKE, only="00")
    assert (latest_artifact("data", {"part": "data"}, "").path / "n.json").read_text() == "3", "00 needs nothing"


@pytest.mark.slow
def test_a_failure_names_notebook_cell_and_error_and_keeps_the_notebook(house, write_chapter, lines):
    path = write_chapter("00_environment", "# about to fail\nboom = 1 / 0", "never = True")
    with pytest.raises(RunFailed) as caught:
        run_plan(SMOKE)
    text = str(caught.value)
    assert "00_environment, cell 4 (boom = 1 / 0): ZeroDivisionError: division by zero" in text
    assert len(text.splitlines()) == 3
    folder = executed_dir(SMOKE)
    assert json.loads((folder / "00_environment.ipynb").read_text())["cells"]
    assert read_record(folder, Step("00_environment"))["status"] == "failed"
    assert "division by zero" in (house / "reports/phase1.html").read_text()

    path.write_text(path.read_text().replace("1 / 0", "1 / 1"))
    run_plan(SMOKE)
    assert read_record(folder, Step("00_environment"))["status"] == "finished"


def test_a_failure_says_how_to_go_on():
    assert "without --only" in _what_next("MissingInput: there is no cognate-parents")
    assert "the same command goes on" in _what_next("ZeroDivisionError: division by zero")


@pytest.mark.slow
def test_a_cell_that_exits_with_zero_is_no_success(house, write_chapter, lines):
    write_chapter("00_environment", "raise SystemExit(0)", "x = 1")
    with pytest.raises(RunFailed, match=r"cell 4 .*SystemExit"):
        run_plan(SMOKE)


@pytest.mark.slow
def test_a_kernel_that_dies_is_reported_as_such(house, write_chapter, lines):
    write_chapter("00_environment", "import os\nos._exit(9)")
    with pytest.raises(RunFailed, match=r"cell 4 .*the kernel died"):
        run_plan(SMOKE)


@pytest.mark.slow
def test_a_red_gate_fails_the_run_and_the_report_shows_its_table(house, write_chapter, lines):
    gate = (
        "from forgelib.core.gates import Check, Gate\n"
        'gate = Gate("Diversity", [Check("halting", 0.1, 0.3, ">")], advice="train longer")\n'
        "publish.gate(gate)\ngate.enforce({failure!r})"
    )
    write_chapter("00_environment", gate.format(failure="raise"))
    with pytest.raises(RunFailed, match="GateFailed"):
        run_plan(SMOKE)
    page = (house / "reports/phase1.html").read_text()
    assert 'class="gate failed"' in page and "train longer" in page

    write_chapter("00_environment", gate.format(failure="record"))
    run_plan(SMOKE)
    assert "gate not passed: Diversity" in lines[-3]
    assert 'class="gate failed"' in (house / "reports/phase1.html").read_text()


@pytest.mark.slow
def test_the_kernel_is_this_python_whatever_is_installed(house, write_chapter, lines, tmp_path, monkeypatch):
    wrong = tmp_path / "jupyter/kernels/python3"
    wrong.mkdir(parents=True)
    (wrong / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    source = 'import sys\npublish.publish("python", {"executable": sys.executable})'
    write_chapter("00_environment", source)
    run_plan(SMOKE)
    executed = json.loads((executed_dir(SMOKE) / "00_environment.ipynb").read_text())
    fact = next(iter(runner.published(executed)))
    assert fact["executable"] == sys.executable


@pytest.mark.slow
def test_a_progress_line_reaches_the_console_and_leaves_one_line_behind(house, write_chapter, monkeypatch):
    notes = []
    monkeypatch.setattr(Console, "note", lambda self, text: notes.append(text))
    source = (
        "from forgelib.workbook.progress import Progress\nimport time\n"
        'for _ in Progress(range(8), total=8, label="trunk"):\n    time.sleep(0.15)'
    )
    write_chapter("00_environment", source)
    run_plan(SMOKE)
    assert any(note.startswith("cell 4 of 4 · trunk") for note in notes)
    executed = json.loads((executed_dir(SMOKE) / "00_environment.ipynb").read_text())
    (output,) = executed["cells"][-1]["outputs"]
    assert "100% · 8/8" in "".join(output["data"]["text/plain"])


@pytest.mark.slow
def test_ctrl_c_ends_the_kernel_and_says_how_to_go_on(house, write_chapter):
    mark = house / "kernel"
    source = f"import os, pathlib, time\npathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    write_chapter("00_environment", source)
    command = [sys.executable, "-c", "from forgelib.cli import main; main()", "run", "--profile", "smoke"]
    forge = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 180
    while not (mark.exists() and mark.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    kernel = int(mark.read_text())
    forge.send_signal(signal.SIGINT)
    said, _ = forge.communicate(timeout=180)
    assert forge.returncode == 130
    assert "interrupted; the same command goes on from the last checkpoint" in said and "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)
    folder = executed_dir(SMOKE)
    assert read_record(folder, Step("00_environment"))["status"] == "interrupted"
