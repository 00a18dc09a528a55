"""Kernels of several runs at once: each has sockets of its own, none of them among the notebooks."""

import os
import subprocess
import sys

import nbformat
import pytest

RUN = """
import sys
from pathlib import Path
from forgelib.workbook.execute import execute
done = execute(Path(sys.argv[1]), Path(sys.argv[2]), {}, lambda line: None)
print(done.cells[-1].outputs[0].text.strip())
"""


@pytest.mark.skipif(os.name != "posix", reason="sockets in files are for POSIX systems")
def test_runs_of_one_folder_at_once_do_not_meet(tmp_path):
    """Started together they take the same free names where these are not their own; messages reach the wrong one."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    look = "import os, time\ntime.sleep(1)\nprint(sorted(name for name in os.listdir('.') if 'ipynb' not in name), {})"
    processes = []
    for i in range(3):
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(look.format(i))])
        nbformat.write(book, folder / f"{i}.ipynb")
        command = [sys.executable, "-c", RUN, str(folder / f"{i}.ipynb"), str(tmp_path / f"out{i}.ipynb")]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=120)[0].strip().splitlines()[-1:] for process in processes]
    assert said == [["[] 0"], ["[] 1"], ["[] 2"]]
