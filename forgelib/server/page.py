"""The description as a page for people: plain HTML, no script, nothing fetched."""

import html
from typing import Any

from forgelib.server.openapi import description

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
code, pre { font-family: ui-monospace, monospace; background: #8881; padding: .1em .3em; }
pre { padding: .7em; overflow-x: auto; }
section { border-top: 1px solid #8884; margin-top: 1.5rem; }
table { border-collapse: collapse; } td, th { text-align: left; padding: .15em .8em .15em 0; vertical-align: top; }
"""


def page(prefix: str) -> str:
    """The page; `prefix`: where the API lies, such as /forge/api."""
    told = description()
    body = "".join(
        _section(method, prefix + path.removeprefix("/forge/api"), operation, told["components"]["schemas"])
        for path, methods in told["paths"].items()
        for method, operation in methods.items()
    )
    title = html.escape(told["info"]["title"])
    intro = html.escape(told["info"]["description"]).replace("`error`", "<code>error</code>")
    intro = intro.replace("`what to do`", "<code>what to do</code>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        f"<h1>{title}</h1><p>{intro}</p>{_example(prefix)}{body}</html>"
    )


def _example(prefix: str) -> str:
    lines = (
        'curl -H "Authorization: token $TOKEN" -X POST $SERVER/baking/start -d \'{"profile": "smoke"}\'',
        'curl -H "Authorization: token $TOKEN" $SERVER/baking/status',
    )
    where = f"SERVER is the address that <code>forge serve</code> printed, with <code>{html.escape(prefix)}</code>."
    return f"<pre>{html.escape(chr(10).join(lines))}</pre><p>{where}</p>"


def _section(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    answers = "".join(
        f"<tr><td><code>{code}</code><td>{html.escape(answer['description'])}"
        for code, answer in operation["responses"].items()
    )
    return (
        f"<section><h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(operation['summary'])}"
        f"{_fields(operation, schemas)}<table>{answers}</table></section>"
    )


def _fields(operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    """The body's fields behind a fold: name, what is allowed, meaning."""
    if "requestBody" not in operation:
        return ""
    shape = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    rows = "".join(
        f"<tr><td><code>{name}</code><td>{html.escape(_allowed(field))}<td>{html.escape(field.get('description', ''))}"
        for name, field in schemas[shape]["properties"].items()
    )
    return f"<details><summary>body: JSON object, every field optional</summary><table>{rows}</table></details>"


def _allowed(field: dict[str, Any]) -> str:
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join([field["type"], *(f"{sign} {field[name]:g}" for name, sign in bounds.items() if name in field)])
