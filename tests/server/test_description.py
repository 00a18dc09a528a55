"""The description is valid OpenAPI, covers every route, and says what the notebooks' own models say."""

import pytest
from jsonschema import Draft202012Validator

from forgelib.server.handlers import handlers
from forgelib.server.openapi import PREFIX, description
from forgelib.server.page import page
from forgelib.server.routes import ROUTES
from forgelib.workbook.params import QuietBake, QuietRL, QuietTheater

TOLD = description()
OPERATION = {
    "type": "object",
    "required": ["operationId", "summary", "responses"],
    "properties": {
        "parameters": {
            "type": "array",
            "items": {
                "required": ["name", "in", "required", "schema"],
                "properties": {"in": {"const": "path"}, "required": {"const": True}},
            },
        },
        "requestBody": {"required": ["content"]},
        "responses": {
            "type": "object",
            "minProperties": 2,
            "patternProperties": {"^[2-5][0-9][0-9]$": {"required": ["description", "content"]}},
            "additionalProperties": False,
        },
    },
    "additionalProperties": {"type": ["string", "array"]},
}
#: What the OpenAPI 3.1 specification asks of the parts that are used here.
OPENAPI = {
    "type": "object",
    "required": ["openapi", "info", "paths", "components", "security"],
    "properties": {
        "openapi": {"pattern": r"^3\.1\.\d+$"},
        "info": {"required": ["title", "version"]},
        "paths": {
            "patternProperties": {
                "^/": {"patternProperties": {"^(get|post)$": OPERATION}, "additionalProperties": False}
            },
            "additionalProperties": False,
        },
        "components": {"propertyNames": {"enum": ["schemas", "securitySchemes"]}},
        "security": {"items": {"propertyNames": {"enum": ["token"]}}},
    },
    "additionalProperties": False,
}


def references(node) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_it_is_valid():
    Draft202012Validator(OPENAPI).validate(TOLD)
    for shape in TOLD["components"]["schemas"].values():
        Draft202012Validator.check_schema(shape)
    known = {f"#/components/schemas/{name}" for name in TOLD["components"]["schemas"]}
    assert references(TOLD) == known
    names = [operation["operationId"] for methods in TOLD["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


def test_it_covers_every_route_and_every_handler():
    told = {(method.upper(), path) for path, methods in TOLD["paths"].items() for method in methods}
    assert told == {(route.method, PREFIX + route.path) for route in ROUTES}
    served = [routes for _, _, options in handlers("/") if (routes := options["routes"])]
    assert {(method, PREFIX + route.path) for routes in served for method, route in routes.items()} == told
    assert all(
        ("{id}" in path) == ("parameters" in methods["get"])
        for path, methods in TOLD["paths"].items()
        if "get" in methods
    )


@pytest.mark.parametrize(
    ("path", "model"), [("baking/start", QuietBake), ("rl/start", QuietRL), ("rl/anti-theater", QuietTheater)]
)
def test_a_start_takes_the_parameters_of_its_notebook(path, model):
    operation = TOLD["paths"][f"{PREFIX}/{path}"]["post"]
    shape = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    told = TOLD["components"]["schemas"][shape]
    assert set(told["properties"]) == set(model.model_fields) and told["additionalProperties"] is False
    assert {"202", "400", "403", "409", "413", "422"} == set(operation["responses"])
    check = Draft202012Validator(told)
    assert check.is_valid({"profile": "smoke"}) and not check.is_valid({"seed": -1}) and not check.is_valid({"x": 1})


def test_the_page_shows_every_parameter_and_its_range():
    shown = page("/somewhere/forge/api")
    assert "POST /somewhere/forge/api/baking/start" in shown
    for model in (QuietBake, QuietRL, QuietTheater):
        assert all(f"<code>{name}</code>" in shown for name in model.model_fields)
    assert "smoke | laptop | gpu6gb | full" in shown and "integer, ≥ 20, ≤ 1e+06" in shown
