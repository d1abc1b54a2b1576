"""uvicorn's server, made embeddable: it signals when it listens, does not handle signals, and shuts down gracefully."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from functools import partial

import uvicorn

from router.http.connections import Connections
from router.http.exchange import ASGI
from router.http.protocol import LimitedProtocol

LATECOMERS_S = 0.25  # for clients that were connected when the port closed, but have not sent a request yet
_LAST_WORDS_S = 0.25  # for answers that are cut off to say so; a supervisor may be about to kill the process


class QuietServer(uvicorn.Server):
    """The server. `listening` is set once clients can connect."""

    def __init__(self, app: ASGI, connections: Connections, backlog: int, idle_s: int, drain_s: int) -> None:
        """`idle_s`: how long a connection may be idle; `drain_s`: how long requests may take to end at shutdown."""
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # or any client could write to the log
        config = uvicorn.Config(
            app,
            http=partial(LimitedProtocol, connections),  # type: ignore[arg-type] # any protocol factory works
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=backlog,
            timeout_keep_alive=idle_s,
            timeout_graceful_shutdown=drain_s,
        )
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, as uvicorn does, and set `listening`."""
        await super().startup(sockets)
        self.listening.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port and shut down, as uvicorn does, but first serve clients that had already connected."""
        waiting = [connection for listener in sockets or () for connection in _accepted(listener)]
        for server in self.servers:
            server.close()
        loop = asyncio.get_running_loop()
        for connection in waiting:
            await loop.connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(LATECOMERS_S)
        await super().shutdown(sockets)

    async def cut_off(self) -> None:
        """Close the port and cancel all requests; each answer ends with an error. Waits _LAST_WORDS_S at most."""
        for server in self.servers:
            server.close()
        if tasks := list(self.server_state.tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_LAST_WORDS_S)

    def _protocol(self) -> asyncio.Protocol:
        make = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)  # type: ignore[call-arg]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the process (`lifecycle`)."""
        yield


def _accepted(listener: socket.socket) -> Iterator[socket.socket]:
    """Accept the connections that wait in the listener's backlog."""
    with contextlib.suppress(OSError):
        while True:
            yield listener.accept()[0]
