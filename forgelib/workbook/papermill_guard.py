"""Keys are refused before papermill writes them down.

papermill stores all parameters in its output notebook before any cell runs, so a notebook that refuses a key comes too
late. But papermill loads what installed packages announce as engines, and pyproject.toml announces this module. It is
no engine; loaded, it has papermill turn parameters into a cell by the translator below, which looks at them first.
Nothing is written by then.
"""

from collections.abc import Mapping
from typing import Any

import click
from papermill.translators import PythonTranslator, papermill_translators

ADVICE = "Keys and passwords are read from the environment: set the variable, and leave the parameter out"


class Keyless(PythonTranslator):
    """papermill's own translator, for parameters that hold no key."""

    @classmethod
    def codify(cls, parameters: Mapping[str, Any], comment: str = "Parameters") -> str:
        """The parameters as a cell's source. Raises click.ClickException, which papermill's command shows as one
        sentence, for a name of a key and for a value that holds a secret of the environment; the value is not
        repeated."""
        refuse(parameters)
        return super().codify(parameters, comment)


def refuse(parameters: Mapping[str, Any]) -> None:
    """Raises click.ClickException where a parameter is a key, or holds one."""
    from forgelib.server.secrecy import mask  # here: whoever starts papermill without parameters does not wait for it
    from forgelib.workbook.params import SECRET

    for name, value in parameters.items():
        if SECRET.search(str(name)):
            raise click.ClickException(f"{name} looks like a key or a password. Nothing was written. {ADVICE}.")
        if mask(text := str(value)) != text:
            raise click.ClickException(f"{name} holds a secret of the environment. Nothing was written. {ADVICE}.")


papermill_translators.register("python", Keyless)
