"""`forge dashboard`: notebook 90 as a web page by Voila, on this machine only, for whoever holds the token.

Without the token nothing of the page is given out, and no login form is shown: 403. The browser is told to fetch
nothing from anywhere else (Content-Security-Policy), and Voila's page is replaced by one that asks for nothing else.

One kernel stands ready with the whole page and keeps looking at the disk: who opens the page waits for no kernel and
sees what is there now, and the next kernel is started meanwhile. One that no page looks at any more is ended.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path

from jupyter_server.auth.identity import IdentityProvider, User
from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado import web
from traitlets.config import Config
from voila.app import Voila
from voila.request_info_handler import RequestInfoSocketHandler

from forgelib.workbook.execute import ThisPython
from forgelib.workbook.plan import notebook_path

HOST, PORT = "127.0.0.1", 8866
PAGE = Path(__file__).with_name("page")
#: Voila's scripts are inline and make functions of text; all else comes from this very server or stands in the page.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'self'"
)
#: The interval of jupyter_server's pings; its own default for the patience is longer, which tornado refuses aloud.
PING_MILLISECONDS = 30_000
#: Seconds after which a kernel without a page is ended.
UNSEEN_SECONDS = 60
#: Seconds before the next spare kernel is started: by then the page has what it needs of the processor.
FILL_SECONDS = 2.0
#: Seconds after which the address is told although no kernel stands ready yet.
WARM_SECONDS = 60


class PortTaken(RuntimeError):
    """Somebody else listens on the port that was asked for."""


class OnlyWithToken(IdentityProvider):
    """Who comes without the token, or a cookie that the token gave, is refused at once: there is no login form."""

    async def get_user(self, handler: web.RequestHandler) -> User:
        """The user of a request; where there is none, the request is answered and over."""
        user = await super()._get_user(handler)
        if user is None:
            handler.set_status(403)
            handler.finish((PAGE / "refused.html").read_text())
            raise web.Finish
        handler.current_user = user
        _ = handler.xsrf_token  # reading it sets the cookie by which a page that closes can end its kernel
        return user


class SeenKernels(AsyncMappingKernelManager):
    """Ends the kernel of a page that is gone: a closed tab says so itself, a browser that crashed does not.

    Voila adds the pool of spare kernels: `_pools`, `fill_if_needed`, and a culling that leaves them alone.
    """

    async def cull_kernel_if_idle(self, kernel_id: str) -> None:
        """Called again and again for each kernel."""
        kernel = self._kernels[kernel_id]
        if self._kernel_connections.get(kernel_id, 0):
            kernel.unseen_since = None
        elif getattr(kernel, "unseen_since", None) is None:
            kernel.unseen_since = time.monotonic()
        elif time.monotonic() - kernel.unseen_since > UNSEEN_SECONDS:
            await self.shutdown_kernel(kernel_id)

    async def start_kernel(self, **options: object) -> str:
        """As ever, but what the kernel starts does not inherit the token: Voila would hand on the page's address."""
        for name in ("QUERY_STRING", "VOILA_REQUEST_URL"):
            (options.get("env") or {}).pop(name, None)
        kernel_id = await super().start_kernel(**options)
        self.add_restart_callback(kernel_id, lambda: self._forget(kernel_id))
        return kernel_id

    async def warm(self) -> None:
        """Returns when every spare kernel has run the notebook."""
        for spare in [one for pool in self._pools.values() for one in pool]:
            await asyncio.shield((await asyncio.shield(spare))["task"])

    async def shutdown_all(self, now: bool = True) -> None:
        """End every kernel at once, for none has anything to save; no spare one is started any more."""
        for spare in [one for pool in self._pools.values() for one in pool]:
            spare.cancel()
        self._pools.clear()
        await super().shutdown_all(now=now)

    def _forget(self, kernel_id: str) -> None:
        """A kernel that died is started anew, but empty: it is no spare one any more, and will end unseen."""
        for pool in self._pools.values():
            pool[:] = [one for one in pool if not one.done() or one.result()["kernel_id"] != kernel_id]
        self.fill_if_needed(notebook_name=self.notebook_path)


class Unsaid(logging.Filter):
    """Log lines without the token."""

    def __init__(self, token: str):
        super().__init__()
        self.token = token

    def filter(self, record: logging.LogRecord) -> bool:
        """Every line stays, the token goes."""
        record.msg, record.args = record.getMessage().replace(self.token, "..."), ()
        return True


class Page(Voila):
    """Voila with one notebook, our page around it, and no configuration but this file's."""

    name = "voila"

    def __init__(self, announce: Callable[[str], object], **options: object):
        super().__init__(**options)
        self.announce = announce

    def load_config_file(self, *_: object, **__: object) -> None:
        """A voila.json that lies about must not open the page."""

    def setup_template_dirs(self) -> None:
        """Our page before Voila's."""
        super().setup_template_dirs()
        self.template_paths.insert(0, str(PAGE))

    def init_handlers(self) -> list:
        """All but the one that tells whoever asks for a kernel by its id how its page was opened, token and all."""
        return [one for one in super().init_handlers() if one[1] is not RequestInfoSocketHandler]

    def launch_browser(self) -> None:
        """Called once the server listens: say where, as soon as the page stands ready."""
        self._announcing = asyncio.get_event_loop().create_task(self._announce())

    async def _announce(self) -> None:
        with contextlib.suppress(Exception):  # a kernel that does not come up: the page says why
            await asyncio.wait_for(self.kernel_manager.warm(), WARM_SECONDS)
        self.announce(f"http://{HOST}:{self.port}/?token={self.token}")

    def stop(self) -> None:
        """End the kernels, and say nothing more."""
        self._announcing.cancel()
        super().stop()


def serve(port: int, announce: Callable[[str], object], token: str = "") -> None:
    """Serve the dashboard until Ctrl-C or SIGTERM; `announce` is called with its address once the page is there.

    port 0 takes a free one. Raises PortTaken.
    """
    options = {
        "file_allowlist": [],
        "allow_template_override": "NO",
        "allow_theme_override": "NO",
        "preheat_kernel": True,
        "kernel_spec_manager_class": ThisPython,
        "multi_kernel_manager_class": SeenKernels,
    }
    token = token or secrets.token_urlsafe(24)
    for name in ("tornado.access", "tornado.application", "tornado.general"):
        logging.getLogger(name).addFilter(Unsaid(token))
    config = {
        "VoilaConfiguration": options,
        "VoilaKernelManager": {"fill_delay": FILL_SECONDS},
        "MappingKernelManager": {"cull_idle_timeout": UNSEEN_SECONDS, "cull_interval": UNSEEN_SECONDS // 2},
        # sockets of this user: nobody else listens in
        "KernelManager": {"transport": "ipc"} if os.name == "posix" else {},
    }
    page = Page(
        announce,
        config=Config(config),
        ip=HOST,
        port=_free(port),
        port_retries=0,
        token=token,
        identity_provider_class=OnlyWithToken,
        tornado_settings={"headers": {"Content-Security-Policy": POLICY}, "ws_ping_timeout": PING_MILLISECONDS},
        notebook_path=str(notebook_path("90_dashboard")),
        log_level="ERROR",
    )
    page.initialize(argv=[])
    page.start()


def _free(port: int) -> int:
    """The port itself, or any free one for 0. Raises PortTaken where somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise PortTaken(
                f"port {port} of this machine cannot be taken ({error.strerror}): try another --port"
            ) from None
        return probe.getsockname()[1]
