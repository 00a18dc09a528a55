"""Helpers of these tests: a house with small notebooks, the inputs of Phase 3, real servers on loopback to talk to."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import psutil
from jsonschema import Draft202012Validator

from forgelib.core.artifacts import draft
from forgelib.core.registry import Registry
from forgelib.server.openapi import description
from forgelib.server.processes import MARK

ROOT = Path(__file__).resolve().parents[2]
TOLD = description()
TOKEN = "the-token-of-this-test"
FORGE = [sys.executable, "-c", "from forgelib.cli import main; main()"]
TAGS = {"profile": "smoke", "seed": 0, "data": "procedural"}
PARAMETERS = 'profile = ""\nseed = 0\ndata = "auto"'


def build_house(folder: Path) -> Path:
    """A repository root with the parameters of all profiles and no notebooks yet."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "forgelib"\n')
    shutil.copytree(ROOT / "params", folder / "params")
    return folder


def write_notebook(house: Path, name: str, *codes: str) -> Path:
    """A notebook with a parameters cell and these cells."""
    book = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    book.cells = [nbformat.v4.new_code_cell(source) for source in (PARAMETERS, *codes)]
    book.cells[0].metadata["tags"] = ["parameters"]
    path = house / "notebooks" / f"{name}.ipynb"
    nbformat.write(book, path)
    return path


def plant(runs: Path, name: str, parents=(), verdicts=(), write=None, **more):
    """Publish an artifact below `runs` as the notebooks would."""
    with draft(runs / "artifacts", name) as new:
        (write or (lambda folder: (folder / "notes.json").write_text("{}")))(new.path)
        made = new.publish(
            step="test", key=name, params={}, parents=list(parents), seed=0, verdicts=list(verdicts), tags=TAGS | more
        )
    Registry(runs).add(made.path, made.manifest, made.digest)
    return made


def environment(runs: Path) -> dict[str, str]:
    """What a server of these tests is started with: its own folders, nobody's configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "FORGE"))}
    jupyter = {f"JUPYTER_{kind}_DIR": str(runs.parent / f"jupyter-{kind.lower()}") for kind in ("CONFIG", "RUNTIME")}
    paths = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    mine = {"FORGE_RUNS": str(runs), "JUPYTER_TOKEN": TOKEN, "JUPYTER_NO_CONFIG": "1", "PYTHONPATH": paths}
    return kept | jupyter | mine


class Server:
    """`forge serve` as a process of its own; `ask` sends a request and returns status and JSON."""

    def __init__(self, house: Path, runs: Path, **more: str):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.said = runs.parent / f"server-{self.port}.log"
        with self.said.open("wb") as log:
            self.process = subprocess.Popen(
                [*FORGE, "serve", "--port", str(self.port)],
                cwd=house,
                env=environment(runs) | more,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.said.read_text()
        try:
            return self.ask("GET", "jobs")[0] == 200
        except (ConnectionError, urllib.error.URLError):
            return False

    def ask(self, method: str, path: str, body=None, token: str | None = TOKEN, timeout: float = 120):
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/forge/api/{path}", raw, method=method)
        if token is not None:
            request.add_header("Authorization", f"token {token}")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                status, text = answer.status, answer.read().decode()
        except urllib.error.HTTPError as refusal:
            status, text = refusal.code, refusal.read().decode()
        said = json.loads(text) if text.startswith("{") else text
        refuse_undescribed(method, path, status, said)
        return status, said

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(timeout=60)


def refuse_undescribed(method: str, path: str, status: int, said) -> None:
    """AssertionError where an answer is not one that openapi.json promises. Paths and methods it does not name pass."""
    for pattern, methods in TOLD["paths"].items():
        if re.fullmatch(re.sub(r"{\w+}", "[^/]+", pattern), f"/forge/api/{path}") and method.lower() in methods:
            answers = methods[method.lower()]["responses"]
            assert str(status) in answers, f"{method} {path} answers {status}, which is not described"
            (content,) = answers[str(status)]["content"].values()
            Draft202012Validator({**content["schema"], "components": TOLD["components"]}).validate(said)


def wait_for(look, seconds: float = 180):
    """What `look` returns as soon as it is something. Looks are counted, not seconds: a test that the system held up
    for minutes still looks once more."""
    for _ in range(round(10 * seconds)):
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come about in time")


def processes_of(job: str) -> list[psutil.Process]:
    """The processes that carry the mark of a job, those that are ending left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == job:
                found.append(process)
        except psutil.Error:
            continue
    return found
