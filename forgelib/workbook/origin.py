"""What an artifact is found by, and the command that makes it where it is missing."""

from collections.abc import Mapping

from forgelib.workbook.params import Parameters


def tags(p: Parameters, **more: object) -> dict:
    """What tells this artifact from the same one of another profile, seed or data choice."""
    return {"profile": p.profile, "seed": p.seed, "data": p.data, **more}


def made_by(notebook: str, named: Mapping[str, object]) -> str:
    """The command that makes what is missing: the notebook with the parameters that it is told apart by."""
    return f"papermill {notebook}.ipynb out.ipynb" + "".join(f" -p {name} {value}" for name, value in named.items())
