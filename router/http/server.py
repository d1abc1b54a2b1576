"""Serves an application on a socket, from the first client to the end of the last stream.

During a drain, `/ready` returns 503 at once and new requests are still served for a moment. Then the port closes, and
running streams may continue until the drain's time is up.
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

DRAIN_GRACE_S = 0.5  # how long new requests are still served after `/ready` turned 503
_IDLE_TIMEOUT_S = 75
_BACKLOG = 2048

_log = logging.getLogger(__name__)


class Application(Protocol):
    """An ASGI application that can drain."""

    draining: bool  # set when the router is about to end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""


class HTTPServer:
    """An application on its socket."""

    def __init__(
        self, app: Application, listener: socket.socket, drain_timeout_s: float, max_connections_per_address: int = 0
    ) -> None:
        self._app = app
        self._listener = listener
        self._grace_s = min(DRAIN_GRACE_S, drain_timeout_s / 2)
        drain_s = max(1, int(drain_timeout_s - self._grace_s))
        self._server = QuietServer(app, Connections(max_connections_per_address), _BACKLOG, _IDLE_TIMEOUT_S, drain_s)

    async def start(self) -> None:
        """Start to serve. Returns when clients can connect."""
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        listening = asyncio.create_task(self._server.listening.wait())
        await asyncio.wait([self._serving, listening], return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if self._serving.done():
            self._serving.result()

    async def run(self, shutdown: Shutdown, leave: Callable[[], None]) -> None:
        """Serve until a drain is requested and complete. `leave` is called when it begins, to inform the fleet."""
        asked = asyncio.create_task(shutdown.wait())
        try:
            await asyncio.wait([self._serving, asked], return_when=asyncio.FIRST_COMPLETED)
            self._app.draining = True
            _log.info("draining")
            leave()
            await asyncio.wait([self._serving], timeout=self._grace_s)
            self._server.should_exit = True
            await self._serving
        finally:  # also after a second signal: answers end with an error before the rest is shut down
            asked.cancel()
            await self._server.cut_off()
            self._serving.cancel()
