"""An application on its socket, from the first client to the end of the last stream.

On the way out `/ready` says 503 at once, newcomers are still served for a moment, then the port closes and streams have
until the drain's time is up.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from baton.process.lifecycle import Shutdown
from router.http.connections import Connections
from router.http.exchange import Receive, Scope, Send
from router.http.quiet_server import QuietServer

DRAIN_GRACE_S = 0.5  # in which newcomers are served, though `/ready` sends them elsewhere
_IDLE_TIMEOUT_S = 75
_BACKLOG = 2048

_log = logging.getLogger(__name__)


class Application(Protocol):
    """What answers: an ASGI application."""

    draining: bool  # set when the router is about to end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""


class HTTPServer:
    """The application on its socket."""

    def __init__(
        self, app: Application, listener: socket.socket, drain_timeout_s: float, max_connections_per_address: int = 0
    ) -> None:
        self._app = app
        self._listener = listener
        self._grace_s = min(DRAIN_GRACE_S, drain_timeout_s / 2)
        drain_s = max(1, int(drain_timeout_s - self._grace_s))
        self._server = QuietServer(app, Connections(max_connections_per_address), _BACKLOG, _IDLE_TIMEOUT_S, drain_s)

    async def start(self) -> None:
        """Returns when clients can connect."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait([self._serving, listening], return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._serving.done():
            self._serving.result()

    async def run(self, shutdown: Shutdown, leave: Callable[[], None]) -> None:
        """Returns when a drain is asked for and done; `leave` tells the fleet."""
        asked = asyncio.create_task(shutdown.wait())
        try:
            await asyncio.wait([self._serving, asked], return_when=asyncio.FIRST_COMPLETED)
            self._app.draining = True
            _log.info("draining")
            leave()
            await asyncio.wait([self._serving], timeout=self._grace_s)
            self._server.should_exit = True
            await self._serving
        finally:  # be it by a second signal: clients hear of it before all else is taken apart
            asked.cancel()
            await self._server.cut_off()
            self._serving.cancel()
