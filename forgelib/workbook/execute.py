"""One notebook run by papermill in a kernel of this very Python, with what it says on the way told to a listener."""

import logging
import os
import re
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
        return manager

    def execute_cell(self, cell: Any, cell_index: int, **options: Any) -> Any:
        self.where = f"cell {cell_index + 1} of {len(self.nb.cells)}"
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

    The output file appears whole, also after a failure. Raises NotebookFailed with the cell and the error for people.
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
            cwd=notebook.parent,
            progress_bar=False,
            listener=listener,
        )
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {plain(error.evalue)}".strip().removesuffix(":")
        raise NotebookFailed(_shipped_place(partial, error.source), _opening(error.source), reason) from None
    except DeadKernelError:
        raise NotebookFailed(*_last_cell(partial), "the kernel died; most often the memory ran out") from None
    finally:
        if partial.exists():
            os.replace(partial, output)
    _refuse_early_end(done)
    return done


def plain(text: str) -> str:
    """Text without terminal colours."""
    return ANSI.sub("", text)


def _refuse_early_end(done: nbformat.NotebookNode) -> None:
    """A cell that exits ends a papermill run as a success; here it counts as what it is."""
    for place, cell in enumerate(done.cells, start=1):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            raise NotebookFailed(place, _opening(cell.source), "this cell never ran: an earlier one ended the kernel")


def _opening(source: str) -> str:
    lines = [line for line in source.splitlines() if line.strip() and not line.startswith("#")]
    return lines[0].strip() if lines else ""


def _shipped_place(path: Path, source: str) -> int:
    cells = nbformat.read(path, as_version=4).cells
    return next(place for place, cell in enumerate(cells, start=1) if cell.source == source)


def _last_cell(path: Path) -> tuple[int, str]:
    cells = list(enumerate(nbformat.read(path, as_version=4).cells, start=1))
    begun = [(place, cell) for place, cell in cells if cell.metadata.get("papermill", {}).get("status") == "failed"]
    place, cell = (begun or cells)[-1]
    return place, _opening(cell.source)
