"""The control API of Phase 3, an extension of the Jupyter server: it shares that server's port, token and log.

`forge serve` and `make lab` start a server with it; another one loads it with
--ServerApp.jpserver_extensions="{'forgelib.server': True}". Everything lies below /forge/api, described by
/forge/api/openapi.json and, for people, /forge/api/docs.
"""

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "forgelib.server"}]


def _load_jupyter_server_extension(app: Any) -> None:
    """Add the handlers to a Jupyter server, and close the records of jobs that died while no server ran. Its kernels
    see the folders that the environment names as this process does."""
    from forgelib.core.paths import pin_folders
    from forgelib.server import jobs
    from forgelib.server.handlers import handlers

    pin_folders()
    app.web_app.add_handlers(".*$", handlers(app.web_app.settings["base_url"]))
    jobs.settle_all()
    app.log.info("Agent Forge control API at %sforge/api/docs", app.web_app.settings["base_url"])
