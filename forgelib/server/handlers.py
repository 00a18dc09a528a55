"""The tornado side: routes to addresses, JSON to plain values, refusals to statuses. Authentication is Jupyter's."""

import asyncio
import json
import re
from http import HTTPStatus
from typing import Any

from jupyter_server.base.handlers import APIHandler
from jupyter_server.utils import url_path_join
from tornado import web

from forgelib.server.answers import Refused
from forgelib.server.openapi import PREFIX, description
from forgelib.server.page import page
from forgelib.server.routes import ROUTES, Route

LARGEST_BODY = 65_536  # bytes; the longest body of parameters has some 2,000
LISTED = "GET /forge/api/openapi.json lists the addresses"
ADVICE = {
    403: "send the header `Authorization: token <the token that forge serve printed>`",
    404: LISTED,
    405: LISTED,
    500: "look at the server's log",
}
NAME = r"([\w.-]+)"


def handlers(base_url: str) -> list[tuple[str, type[APIHandler], dict[str, Any]]]:
    """Every route below `base_url`, and a last one for addresses that are none."""
    by_path: dict[str, dict[str, Route]] = {}
    for route in ROUTES:
        by_path.setdefault(route.path, {})[route.method] = route
    prefix = url_path_join(base_url, PREFIX)
    found = [(_pattern(prefix + path), Endpoint, {"routes": routes}) for path, routes in by_path.items()]
    return [*found, (re.escape(prefix) + r"(?:/.*)?", Endpoint, {"routes": {}})]


def _pattern(path: str) -> str:
    return re.escape(path).replace(re.escape("{id}"), NAME)


class Endpoint(APIHandler):
    """The methods of one address."""

    def initialize(self, routes: dict[str, Route]) -> None:
        self.routes = routes

    @web.authenticated
    async def get(self, job: str = "") -> None:
        await self._answer(job)

    @web.authenticated
    async def post(self, job: str = "") -> None:
        await self._answer(job)

    async def _answer(self, job: str) -> None:
        """Find the route, let it answer in a thread (it reads files and starts processes), write what it says."""
        if not self.routes:
            raise web.HTTPError(404)
        route = self.routes.get(self.request.method)
        if route is None:
            raise web.HTTPError(405)
        if route.answer is None:
            return self._describe(route)
        try:
            body = self._body() if route.method == "POST" else {}
            reply = await asyncio.to_thread(route.answer, job, body)
        except Refused as refusal:
            return self._say(refusal.status, refusal.reply)
        self._say(route.status, reply.model_dump(by_alias=True))

    def _body(self) -> dict[str, Any]:
        """The body as an object; an empty one is {}. Raises Refused (400, 413)."""
        if len(self.request.body) > LARGEST_BODY:
            raise Refused(413, f"the body has {len(self.request.body):,} bytes", f"send at most {LARGEST_BODY:,}")
        advice = 'send a JSON object, such as {"profile": "smoke"}, or nothing'
        if not self.request.body.strip():
            return {}
        try:
            body = json.loads(self.request.body.decode("utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}", advice) from None
        if not isinstance(body, dict):
            raise Refused(400, "the body is JSON, but not an object", advice)
        return body

    def _describe(self, route: Route) -> None:
        if not route.page:
            return self._say(200, description())
        self.set_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.finish(page(url_path_join(self.base_url, PREFIX)), set_content_type="text/html; charset=UTF-8")

    def _say(self, status: int, reply: dict[str, Any]) -> None:
        self.set_status(status)
        self.finish(json.dumps(reply, allow_nan=False))

    def write_error(self, status_code: int, **_: Any) -> None:
        """What tornado or Jupyter refuse, in the form of our own refusals; a failure's details stay in the log."""
        phrase = {
            403: "the token is missing or wrong",
            404: f"there is nothing at {self.request.path}",
            405: f"{self.request.method} is not for {self.request.path}",
            500: "the server failed at this request",
        }.get(status_code, HTTPStatus(status_code).phrase)
        advice = ADVICE.get(status_code, "look at the request")
        if status_code == 405 and self.routes:
            self.set_header("Allow", ", ".join(self.routes))
            advice = f"use {' or '.join(self.routes)}"
        self.finish(json.dumps({"error": phrase, "what to do": advice}))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
