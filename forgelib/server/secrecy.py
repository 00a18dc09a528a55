"""Keys and tokens stay in the environment: they are refused as parameters and blotted out of what is written down."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from forgelib.server.answers import Refused

SECRET_NAME = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
#: A shorter value is no secret, and blotting it out would garble the text.
SHORTEST = 8
ADVICE = "keys come from the environment only: set the variable before the server starts, and leave it out here"


def refuse_secrets(asked: Mapping[str, Any], knobs: Iterable[str]) -> None:
    """Raises Refused (422) for a name that asks for a secret and is no knob of the notebook (thought_tokens is one),
    and for a value that holds a secret of the environment. The value is not repeated."""
    for name, value in asked.items():
        if name not in knobs and SECRET_NAME.search(name):
            raise Refused(422, f"{name} = ...: keys, tokens and passwords are no parameters", ADVICE)
        if mask(text := str(value)) != text:
            raise Refused(422, f"{name} = ...: holds a secret of the environment", ADVICE)


def mask(text: str) -> str:
    """`text` with every secret of the environment replaced by ***."""
    for value in _secrets():
        text = text.replace(value, "***")
    return text


def without_server_token(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment that a job may have: the token of the Jupyter server is none of its business."""
    return {name: value for name, value in environment.items() if not name.startswith("JUPYTER_TOKEN")}


def _secrets() -> list[str]:
    found = (value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST)
    return sorted(found, key=len, reverse=True)
