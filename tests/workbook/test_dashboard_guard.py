"""What stands between the dashboard and everybody else: the token stays out of logs and kernels, lost kernels end."""

import asyncio
import logging
import socket
from types import SimpleNamespace

import pytest
from traitlets.config import Config

from forgelib.workbook import dashboard_page
from forgelib.workbook.dashboard_page import PAGE, POLICY, PortTaken, SeenKernels, Unsaid, _free
from forgelib.workbook.execute import ThisPython


def test_the_token_never_reaches_a_log_line(caplog):
    log = logging.getLogger("a log of this test")
    log.addFilter(Unsaid("s3cret"))
    with caplog.at_level(logging.INFO):
        log.warning("404 GET %s (%s)", "/?token=s3cret", "127.0.0.1")
        log.info("nothing to hide")
    assert [record.getMessage() for record in caplog.records] == ["404 GET /?token=... (127.0.0.1)", "nothing to hide"]


def test_a_port_that_is_taken_is_refused_by_its_number():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"port {port} of this machine cannot be taken .*--port"):
            _free(port)
        assert _free(0) != port


def test_a_kernel_ends_when_nobody_has_looked_at_it_for_a_while(monkeypatch):
    ended, clock = [], [0.0]
    monkeypatch.setattr(dashboard_page, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    class Kernels(SeenKernels):
        async def shutdown_kernel(self, kernel_id, *_, **__):
            ended.append(kernel_id)

    async def scene() -> None:
        kernels = Kernels()
        kernels._kernels = {"seen": SimpleNamespace(), "lost": SimpleNamespace()}
        kernels._kernel_connections = {"seen": 1, "lost": 0}
        for seconds in (0.0, 59.0, 61.0):
            clock[0] = seconds
            for kernel_id in kernels._kernels:
                await kernels.cull_kernel_if_idle(kernel_id)
            assert ended == (["lost"] if seconds > 60 else [])

    asyncio.run(scene())


def test_a_spare_kernel_that_died_is_not_handed_out_empty():
    filled = []

    class Kernels(SeenKernels):
        notebook_path = "90"

        def fill_if_needed(self, notebook_name):
            filled.append(notebook_name)

    async def scene() -> None:
        kernels = Kernels(kernel_spec_manager=ThisPython(), config=Config({"KernelManager": {"transport": "ipc"}}))
        kernel_id = await kernels.start_kernel()
        kernel, spare, other = kernels.get_kernel(kernel_id), asyncio.Future(), asyncio.Future()
        spare.set_result({"kernel_id": kernel_id})
        kernels._pools = {"90": [spare, other]}
        kernel.provisioner.process.kill()
        for _ in range(1200):
            await asyncio.sleep(0.1)
            if filled and kernel.ready.done() and await kernel.is_alive():
                break
        assert filled == ["90"] and kernels._pools == {"90": [other]}
        await kernels.shutdown_all()
        assert other.cancelled() and kernels._pools == {}, "none is started after the end"

    asyncio.run(scene())


def test_the_page_itself_names_no_foreign_address():
    for file in PAGE.iterdir():
        assert "://" not in file.read_text(), file.name
    assert "http" not in POLICY and "default-src 'self'" in POLICY
