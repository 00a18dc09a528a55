"""`forge serve` listens where it says, and shows a token that it made itself exactly once."""

import logging
import os
import signal
import socket
import subprocess
import urllib.request
from types import SimpleNamespace

from serving import FORGE, ROOT, build_house, environment, wait_for

from forgelib.server import _jupyter_server_extension_points, _load_jupyter_server_extension
from forgelib.server.launch import arguments


def test_make_lab_and_forge_serve_enable_the_same_extension():
    (point,) = _jupyter_server_extension_points()
    option = f"--ServerApp.jpserver_extensions={{'{point['module']}': True}}"
    assert option in arguments("127.0.0.1", None, "t")
    assert option in (ROOT / "Makefile").read_text().replace('"', "")


def test_a_wished_port_is_taken_or_refused_but_never_another():
    assert "--ServerApp.port_retries=0" in arguments("127.0.0.1", 9000, "t")
    assert not any("port" in argument for argument in arguments("127.0.0.1", None, "t"))


def test_an_address_that_is_not_of_this_machine_is_said_in_a_sentence(tmp_path):
    house = build_house(tmp_path / "house")
    command = [*FORGE, "serve", "--ip", "192.0.2.1"]  # reserved for documentation
    given = environment(tmp_path / "runs")
    done = subprocess.run(command, cwd=house, env=given, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("forge: --ip 192.0.2.1: cannot be listened at (")


def test_the_kernels_of_a_server_see_the_folders_that_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGE_RUNS", "here/runs")
    monkeypatch.setenv("FORGE_DATASETS", "../rows")
    web = SimpleNamespace(add_handlers=lambda *handlers: None, settings={"base_url": "/"})
    _load_jupyter_server_extension(SimpleNamespace(web_app=web, log=logging.getLogger()))
    assert os.environ["FORGE_RUNS"] == str(tmp_path / "here" / "runs")
    assert os.environ["FORGE_DATASETS"] == str(tmp_path.parent / "rows")


def test_a_generated_token_is_printed_once_and_opens_the_door(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    house = build_house(tmp_path / "house")
    given = {name: value for name, value in environment(tmp_path / "runs").items() if name != "JUPYTER_TOKEN"}
    with (tmp_path / "said").open("wb") as log:
        command = [*FORGE, "serve", "--port", str(port)]
        server = subprocess.Popen(command, cwd=house, env=given, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = wait_for(
            lambda: next((line for line in (tmp_path / "said").read_text().splitlines() if "?token=" in line), ""), 120
        )
        token = address.partition("?token=")[2]
        assert len(token) == 48
        wait_for(lambda: _opens(address))
        assert (tmp_path / "said").read_text().count(token) == 1
        with open(f"/proc/{server.pid}/cmdline") if os.path.isdir("/proc") else open(os.devnull) as listed:
            assert token not in listed.read(), "whoever lists processes would see it"
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait(timeout=60)


def _opens(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            return b"Agent Forge control API" in answer.read()
    except OSError:
        return False
