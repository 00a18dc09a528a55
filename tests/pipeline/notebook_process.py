"""Runs the code cells of a notebook in this process, as a kernel would, for tests that kill it.

python notebook_process.py 11_cognate_train specialist=memory trunk_steps=40 ...
"""

import ast
import sys
from pathlib import Path

import nbformat
import torch


def main(name: str, *assignments: str) -> None:
    torch.set_num_threads(1)
    notebooks = Path(__file__).resolve().parents[2] / "notebooks"
    cells = [c for c in nbformat.read(notebooks / f"{name}.ipynb", as_version=4).cells if c.cell_type == "code"]
    given = dict(assignment.split("=", 1) for assignment in assignments)
    injected = "\n".join(["# Parameters", *(f"{key} = {value_of(text)!r}" for key, text in given.items())])
    namespace = {"__name__": "__main__", "In": []}
    for cell in cells:
        sources = [cell.source] + ([injected] if "parameters" in cell.metadata.get("tags", ()) else [])
        for source in sources:
            namespace["In"].append(source)
            exec(compile(source, f"<{name}>", "exec"), namespace)


def value_of(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


if __name__ == "__main__":
    main(*sys.argv[1:])
