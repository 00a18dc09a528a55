"""The steps of Phase 3 that can be started: the notebook of each, what it takes, and what must be there before."""

import json
import keyword
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from forgelib.core.paths import runs_dir
from forgelib.core.registry import Registry
from forgelib.server.answers import Refused
from forgelib.server.secrecy import refuse_secrets
from forgelib.workbook.params import MODELS, ParameterError, Parameters, describe
from forgelib.workbook.plan import Step, parameters

#: What `forge run` takes as well: with these alone a job is a run of the workbook, and its page is in the report.
COMMON = ("profile", "seed", "data")
CORRECT = "correct the fields; /forge/api/openapi.json lists every parameter with its range"


@dataclass(frozen=True)
class Input:
    """An artifact that a notebook takes up, by its name and tags, and the notebook that makes it."""

    artifact: str
    maker: str
    tags: tuple[str, ...] = COMMON


@dataclass(frozen=True)
class Task:
    """A step that can be started. `steps`: it has a training loop that looks once a step whether it shall wait."""

    name: str
    notebook: str
    inputs: tuple[Input, ...]
    steps: bool = True


CHAMPION = Input("evomerge-champion", "21_evomerge_evolve")
BAKED = Input("quietstar-baked", "30_quietstar_bake", (*COMMON, "vocabulary"))
REINFORCED = Input("quietstar-rl", "31_quietstar_rl", (*COMMON, "vocabulary"))
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("baking", "30_quietstar_bake", (CHAMPION,)),
        Task("rl", "31_quietstar_rl", (BAKED, CHAMPION)),
        Task("anti-theater", "32_quietstar_antitheater", (REINFORCED, CHAMPION), steps=False),
    )
}


def checked(notebook: str, asked: Mapping[str, Any]) -> Parameters:
    """The full parameters of a notebook. Raises Refused (422) naming each wrong field, its value, what is allowed."""
    model = MODELS[notebook]
    refuse_secrets(asked, model.model_fields)
    for name in asked:
        if not name.isidentifier() or name.startswith("_") or keyword.iskeyword(name):
            raise Refused(422, f"{notebook} cannot start: {name!r} is no name of a parameter", CORRECT)
    try:
        return parameters(Step(notebook), asked)
    except ParameterError as error:
        raise Refused(422, str(error), CORRECT, fields=wrong_fields(model, asked)) from None


def validated(model: type[BaseModel], body: Mapping[str, Any]) -> BaseModel:
    """A body that is no notebook's parameters. Raises Refused (422)."""
    refuse_secrets(body, model.model_fields)
    try:
        return model.model_validate(dict(body))
    except ValidationError:
        wrong = wrong_fields(model, body)
    lines = [f"{one['field']} = {one['value']!r}: must be {one['allowed']}" for one in wrong]
    raise Refused(422, "\n".join(lines), CORRECT, fields=wrong)


def wrong_fields(model: type[BaseModel], asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Field, value and what is allowed, for each field that is wrong by itself."""
    try:
        model.model_validate({name: value for name, value in asked.items() if (name, value) != ("profile", "")})
    except ValidationError as error:
        problems = [(str(one["loc"][0]), one["input"]) for one in error.errors() if one["loc"]]
    else:
        return []
    known = ", ".join(model.model_fields)
    return [
        {
            "field": name,
            "value": _strict(value),
            "allowed": describe(model, name) if name in model.model_fields else f"one of the names {known}",
        }
        for name, value in problems
    ]


def _strict(value: Any) -> Any:
    """`value` with numbers that are not finite as texts: JSON has none, but 1e999 is read as one."""
    return json.loads(json.dumps(value), parse_constant=str)


def refuse_missing(inputs: Iterable[Input], p: Parameters) -> None:
    """Raises Refused (409) naming the notebook that makes what is not there yet."""
    registry = Registry(runs_dir())
    for need in inputs:
        tags = {name: getattr(p, name) for name in need.tags}
        if not registry.find(name=need.artifact, tags=tags):
            words = ", ".join(f"{name} {value}" for name, value in tags.items())
            options = " ".join(f"--{name} {tags[name]}" for name in COMMON)
            raise Refused(
                409,
                f"there is no {need.artifact} for {words} below {registry.root}",
                f"make it with notebook {need.maker}: forge run --only {need.maker} {options}",
                missing=need.artifact,
                notebook=need.maker,
            )
