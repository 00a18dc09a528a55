"""`forge serve`: a Jupyter server on loopback with the control API, and a token that is shown once."""

import os
import secrets
from collections.abc import Callable

from forgelib.core.paths import repo_root
from forgelib.workbook.params import ParameterError

EXTENSION = "forgelib.server"


def serve(ip: str, port: int | None, say: Callable[[str], None]) -> None:
    """Run the server until it is interrupted. `port` None: 8888, or the next one that is free.

    The token is $JUPYTER_TOKEN, or a new one. It reaches Jupyter inside this process, so that no list of processes, no
    kernel and no log shows it. Raises ParameterError where this machine has no such address.
    """
    from jupyter_server.serverapp import ServerApp

    known = os.environ.pop("JUPYTER_TOKEN", "")
    token = known or secrets.token_hex(24)
    app = ServerApp.instance()
    try:
        app.initialize(argv=arguments(ip, port, token))
    except OSError as error:
        raise ParameterError(f"--ip {ip}: cannot be listened at ({error.strerror or error})") from None
    address = f"http://{ip}:{app.port}{app.base_url}forge/api/docs"
    say(f"{address}  (token: $JUPYTER_TOKEN)" if known else f"{address}?token={token}")
    app.start()


def arguments(ip: str, port: int | None, token: str) -> list[str]:
    """What Jupyter's own command line would be given; it outranks the files of the user's configuration."""
    wish = [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"] if port is not None else []
    return [
        f"--ServerApp.ip={ip}",
        *wish,
        f"--IdentityProvider.token={token}",
        "--PasswordIdentityProvider.hashed_password=",
        "--ServerApp.open_browser=False",
        "--ServerApp.allow_root=True",
        "--ServerApp.log_level=WARN",  # the address is what the terminal shows
        f"--ServerApp.root_dir={repo_root() / 'notebooks'}",
        f"--ServerApp.jpserver_extensions={{'{EXTENSION}': True}}",
    ]
