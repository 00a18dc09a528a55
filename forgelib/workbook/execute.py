"""One notebook run by papermill in a kernel of this very Python, with what it says on the way told to a listener."""

import logging
import os
import re
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient.exceptions import DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines
from papermill.exceptions import PapermillExecutionError

from forgelib.workbook.publish import MIME

Listener = Callable[[str], None]
PAPERMILL_TAGS = {"injected-parameters", "papermill-error-cell-tag"}
MAIN_THREAD = threading.main_thread()
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class NotebookFailed(RuntimeError):
    """A notebook stopped: `cell` (its place, from 1), `opening` (its first line) and the error in plain words."""

    def __init__(self, cell: int, opening: str, reason: str):
        super().__init__(reason)
        self.cell, self.opening, self.reason = cell, opening, reason


class ThisPython(KernelSpecManager):
    """Whatever kernel a notebook names, it runs in the interpreter that runs forge, not in one installed elsewhere."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


class Client(PapermillNotebookClient):
    """papermill's client, telling `listener` which cell runs and how far a Progress line is."""

    def __init__(self, nb_man: Any, listener: Listener, **options: Any):
        super().__init__(nb_man, **options)
        self.listener = listener
        self.where = ""

    def create_kernel_manager(self) -> Any:
        manager = super().create_kernel_manager()
        manager.kernel_spec_manager = ThisPython()
        if os.name == "posix":
            # Sockets are files of this user, under a name of their own: no port and no name to race for with another
            # run of the same notebooks, nothing to listen in on, and no file left among the notebooks by a kill.
            manager.transport, manager.ip = "ipc", f"{tempfile.gettempdir()}/forge-{secrets.token_hex(6)}"
        return manager

    def papermill_execute_cells(self) -> None:
        before = signal.signal(signal.SIGINT, self._pass_on) if threading.current_thread() is MAIN_THREAD else None
        try:
            super().papermill_execute_cells()
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)

    def _pass_on(self, *_: Any) -> None:
        """The first Ctrl-C ends the cell, so that notebook and kernel close in order; a second one ends forge."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(self.km.provisioner.process.pid, signal.SIGINT)

    def execute_cell(self, cell: Any, cell_index: int, **options: Any) -> Any:
        self.where = f"cell {_place(self.nb, cell_index)} of {_place(self.nb, len(self.nb.cells) - 1)}"
        if cell.cell_type == "code":
            self.listener(self.where)
        return super().execute_cell(cell, cell_index, **options)

    def process_message(self, msg: Any, *place: Any) -> Any:
        fact = msg["content"].get("data", {}).get(MIME, {}) if msg["msg_type"].endswith("display_data") else {}
        if fact.get("kind") == "progress":
            self.listener(f"{self.where} · {fact['line']}")
        return super().process_message(msg, *place)


class ForgeEngine(Engine):
    """papermill's engine that runs a notebook with Client."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, listener: Listener, **_: Any) -> Any:
        options = {"kernel_name": kernel_name, "timeout": None, "startup_timeout": 120, "coalesce_streams": True}
        return Client(nb_man, listener, **options).execute()


papermill_engines.register("forge", ForgeEngine)


def execute(notebook: Path, output: Path, parameters: Mapping[str, Any], listener: Listener) -> nbformat.NotebookNode:
    """Run `notebook` with `parameters` injected, from its own folder; returns what was executed, also kept at `output`.

    The output file appears whole, also after a failure. Raises NotebookFailed with the cell and the error for people,
    KeyboardInterrupt after Ctrl-C.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)
    partial = output.with_suffix(".partial.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = papermill.execute_notebook(
            notebook,
            partial,
            dict(parameters),
            engine_name="forge",
            kernel_name="python3",
            language="python",
            cwd=notebook.parent,
            progress_bar=False,
            listener=listener,
        )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            raise KeyboardInterrupt from None
        raise _failure(partial, f"{error.ename}: {plain(error.evalue)}".removesuffix(": ")) from None
    except DeadKernelError:
        raise _failure(partial, "the kernel died; most often the memory ran out") from None
    finally:
        if partial.exists():
            os.replace(partial, output)
    _refuse_early_end(done)
    return done


def plain(text: str) -> str:
    """Text without terminal colours."""
    return ANSI.sub("", text)


def _refuse_early_end(done: nbformat.NotebookNode) -> None:
    """A cell that raises SystemExit(0) ends a papermill run as a success; here it counts as what it is."""
    for index, cell in enumerate(done.cells):
        if any(output.output_type == "error" for output in cell.get("outputs", ())):
            reason = "SystemExit: the cell ended the notebook; the cells after it never ran"
            raise NotebookFailed(_place(done, index), _opening(cell.source), reason)


def _failure(executed: Path, reason: str) -> NotebookFailed:
    """The failure at the last code cell that was started."""
    book = nbformat.read(executed, as_version=4)
    started = [n for n, cell in enumerate(book.cells) if cell.metadata.get("papermill", {}).get("start_time")]
    index = [n for n in started if book.cells[n].cell_type == "code"][-1]
    return NotebookFailed(_place(book, index), _opening(book.cells[index].source), reason)


def _place(book: nbformat.NotebookNode, index: int) -> int:
    """Place, from 1, of a cell in the notebook as shipped: what papermill added does not count."""
    tags = [set(cell.metadata.get("tags", ())) for cell in book.cells[: index + 1]]
    return sum(not of_cell & PAPERMILL_TAGS for of_cell in tags)


def _opening(source: str) -> str:
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    return lines[0].strip() if lines else ""
