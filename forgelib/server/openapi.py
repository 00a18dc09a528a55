"""openapi.json (OpenAPI 3.1), made of the table of routes and the pydantic models, so that it says what is done."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from forgelib.server.answers import Refusal
from forgelib.server.routes import ROUTES, Route

PREFIX = "/forge/api"
TEMPLATE = "#/components/schemas/{model}"
#: What any request may be answered with, whatever it asks for.
ALWAYS = {403: "the token is missing or wrong"}
WITH_BODY = {400: "the body is not a JSON object", 413: "the body is too large"}
LEFT_OUT = "a parameter that is left out has the profile's value; the defaults named here are the laptop profile's"
ABOUT = (
    "Starts, watches, pauses and stops the steps of Phase 3. A job is a notebook run as a process of its own: it "
    "outlives the page that started it, and the server. Every error is a JSON object with `error` and `what to do`."
)


def description() -> dict[str, Any]:
    """The whole description as plain values."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Agent Forge control API", "version": "1.0.0", "description": ABOUT},
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "the Jupyter server's token: `Authorization: token <it>`",
                }
            },
        },
        "security": [{"token": []}],
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.path.split("/")[1]],
        "responses": _responses(route),
    }
    if "{id}" in route.path:
        about = "a job's id, or its run folder's name"
        operation["parameters"] = [
            {"name": "id", "in": "path", "required": True, "schema": {"type": "string"}, "description": about}
        ]
    if route.body is not None:
        operation["requestBody"] = {"required": False, "description": LEFT_OUT, "content": _json(route.body)}
    return operation


def _responses(route: Route) -> dict[str, Any]:
    kind = "text/html" if route.page else "application/json"
    shape = _json(route.reply) if route.reply else {kind: {"schema": {"type": "string" if route.page else "object"}}}
    refusals = {**ALWAYS, **(WITH_BODY if route.method == "POST" else {}), **route.refusals}
    return {
        str(route.status): {"description": "started" if route.status == 202 else "done", "content": shape},
        **{str(code): {"description": text, "content": _json(Refusal)} for code, text in sorted(refusals.items())},
    }


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": TEMPLATE.format(model=model.__name__)}}}


def _schemas() -> dict[str, Any]:
    bodies = {route.body for route in ROUTES if route.body}
    replies = {Refusal, *(route.reply for route in ROUTES if route.reply)}
    asked = [(model, "validation") for model in bodies] + [(model, "serialization") for model in replies]
    ordered = sorted(asked, key=lambda pair: pair[0].__name__)
    return models_json_schema(ordered, by_alias=True, ref_template=TEMPLATE)[1]["$defs"]
