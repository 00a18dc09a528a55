"""`resolve` reads a notebook's knobs, and refuses what they cannot take before any work starts.

A notebook keeps its knobs as plain scalars in one cell tagged `parameters`; papermill puts a cell `# Parameters`
below it with what the command line asked for. `resolve` joins the three sources of a value, highest first: asked for
explicitly (injected by papermill, or edited in the notebook), params/<profile>/<notebook>.yaml, and the default in
`workbook.knobs`, which is the laptop's.
"""

import ast
import contextlib
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from forgelib.core.paths import PROFILES, default_profile, params_dir
from forgelib.workbook.knobs import (
    MODELS,
    BitnetBenchmark,
    BitnetFinetune,
    BitnetQuantize,
    CognateData,
    CognateDiversity,
    CognateTrain,
    Environment,
    EvoEvolve,
    EvoMethods,
    Parameters,
    QuietABTest,
    QuietBake,
    QuietRL,
    QuietTheater,
)

__all__ = [
    "MODELS",
    "BitnetBenchmark",
    "BitnetFinetune",
    "BitnetQuantize",
    "CognateData",
    "CognateDiversity",
    "CognateTrain",
    "Environment",
    "EvoEvolve",
    "EvoMethods",
    "ParameterError",
    "Parameters",
    "QuietABTest",
    "QuietBake",
    "QuietRL",
    "QuietTheater",
    "describe",
    "profile_values",
    "resolve",
]

#: First line of the cell that papermill injects; a notebook's own parameters cell must not begin with it.
INJECTED = "# Parameters"
#: Names of what must not be kept with a run. "max_new_tokens" is none, "HF_TOKEN" is.
SECRET = re.compile(r"(?i)(^|_)(key|apikey|token|secret|password|passwd|passphrase|credentials?|auth)($|_)")
Scalar = str | int | float | bool | None


class ParameterError(ValueError):
    """A notebook was given an unknown knob or a value it cannot take; the text says which and what is allowed."""

    def _render_traceback_(self) -> list[str]:
        """IPython shows the sentence alone: the reader mistyped a value, the stack has nothing to say about it."""
        return [f"ParameterError: {self}"]


P = TypeVar("P", bound=Parameters)


def resolve(model: type[P], namespace: Mapping[str, Any]) -> P:
    """Read a notebook's knobs: `p = resolve(CognateTrain, globals())`.

    `namespace` holds plain scalars by name. In a notebook, the names that its parameters cell or papermill's cell
    assigns count, so that a loop variable of a later cell is no unknown knob; in a plain dict every public name
    counts. profile "" means $FORGE_PROFILE, else laptop.
    Raises ParameterError naming each wrong field, its value, what is allowed and, for an unknown name, the nearest one.
    """
    shipped, injected = _assigned_names(namespace["In"]) if "In" in namespace else (set(namespace), set())
    candidates = shipped | injected
    given = {name: namespace[name] for name in candidates if name in namespace and not name.startswith("_")}
    given["profile"] = _profile(given.get("profile", ""), model)
    asked = {
        name: value
        for name, value in given.items()
        if name in injected or name not in model.model_fields or not _same(value, model.model_fields[name].default)
    }
    return _validate(model, {**profile_values(model, given["profile"]), **asked, "profile": given["profile"]})


def profile_values(model: type[Parameters], profile: str) -> dict[str, Scalar]:
    """The values of params/<profile>/<notebook>.yaml; the file lists only what differs from the laptop."""
    path = params_dir() / profile / f"{model.NOTEBOOK}.yaml"
    if not path.is_file():
        raise ParameterError(
            f"{model.NOTEBOOK}: profile '{profile}' has no values for this notebook; {path} is missing"
        )
    values = yaml.safe_load(path.read_text()) or {}
    if not isinstance(values, dict):
        raise ParameterError(f"{path} must be a flat list of `name: value` lines")
    return values


def describe(model: type[Parameters], name: str) -> str:
    """One line for people: what the field takes, in which range, and its unit or meaning."""
    field = model.model_fields[name]
    return f"{_allowed(field)} ({field.description})"


def _assigned_names(cells: Iterable[str]) -> tuple[set[str], set[str]]:
    """Names assigned by the parameters cell (the one that sets `profile`) and by papermill's, in IPython's record."""
    shipped, injected = set(), set()
    for source in cells:
        with contextlib.suppress(SyntaxError):
            nodes = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
            names = {target.id for node in nodes for target in node.targets if isinstance(target, ast.Name)}
            if source.lstrip().split("\n", 1)[0].strip() == INJECTED:
                injected |= names
            elif "profile" in names:
                shipped |= names
    return shipped, injected


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and value == default


def _profile(value: Any, model: type[Parameters]) -> str:
    where = "profile" if value else "profile (from FORGE_PROFILE)"
    value = value or default_profile()
    if value not in PROFILES:
        allowed = ", ".join(PROFILES)
        raise ParameterError(f"{model.NOTEBOOK}: {where} = {value!r}: must be one of {allowed}{_near(value, PROFILES)}")
    return value


def _validate(model: type[P], values: dict[str, Any]) -> P:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, problem) for problem in error.errors()]
    raise ParameterError(f"{model.NOTEBOOK} cannot start:\n  " + "\n  ".join(lines))


def _explain(model: type[Parameters], problem: Mapping[str, Any]) -> str:
    name, value = str(problem["loc"][0]) if problem["loc"] else "", problem["input"]
    if problem["type"] == "extra_forbidden" and SECRET.search(name):
        return (
            f"{name}: there is no such parameter. It looks like a key or a password, and parameters are kept with the "
            "run: set an environment variable instead. papermill has already written the value to its output notebook: "
            "delete that file"
        )
    if problem["type"] == "extra_forbidden":
        known = [field for field in model.model_fields if field != "profile"]
        return f"{name} = {value!r}: there is no such parameter{_near(name, known)} (known: {', '.join(known)})"
    if name not in model.model_fields:
        return str(problem["msg"]).removeprefix("Value error, ")
    text = f"{name} = {value!r}: must be {describe(model, name)}"
    if isinstance(value, str) and isinstance(_number(value), _kinds(model.model_fields[name])):
        return f"{text}. This is text, not a number (YAML reads 1e-3 as text): write {_written(value)} without quotes"
    if problem["type"] == "literal_error" and isinstance(value, str):
        return text + _near(value, _choices(model.model_fields[name]))
    return text


def _number(text: str) -> int | float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() and abs(number) >= 1 else number


def _written(text: str) -> str:
    """The number as YAML reads one, too: 0.00001, where Python says 1e-05."""
    return format(Decimal(repr(_number(text))), "f")


def _kinds(field: FieldInfo) -> tuple[type, ...]:
    """Of which types a number for this field can be."""
    return {int: (int,), float: (int, float)}.get(field.annotation, ())


def _choices(field: FieldInfo) -> tuple[str, ...]:
    return getattr(field.annotation, "__args__", ())


def _allowed(field: FieldInfo) -> str:
    if choices := _choices(field):
        return "one of " + ", ".join(map(str, choices))
    kind = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}[field.annotation]
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    bounds = [f"{signs[s]} {_plain(getattr(m, s))}" for m in field.metadata for s in signs if hasattr(m, s)]
    return ", ".join([kind, " and ".join(bounds)]) if bounds else kind


def _plain(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


def _near(name: str, known: Any) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    parts = [k for k in known if str(name) in k.split("_")] if not close else []
    return f"; did you mean '{(close or parts)[0]}'?" if close or parts else ""
