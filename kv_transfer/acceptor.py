"""Accepts connections of a listening socket in the event loop."""

import asyncio
import errno
import socket
from collections.abc import Callable

_PAUSE_S = 0.2  # out of resources, the socket stays readable: without a pause the event loop would spin
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Passes every new connection to `on_connection`, until closed."""

    def __init__(self, sock: socket.socket, on_connection: Callable[[socket.socket], None]) -> None:
        """`sock` is a listening socket, which the acceptor makes non-blocking, owns and closes."""
        sock.setblocking(False)
        self._sock = sock
        self._on_connection = on_connection
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._start_accepting()

    def close(self) -> None:
        """Stop accepting, and close the socket. Idempotent."""
        if self._pause:
            self._pause.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _start_accepting(self) -> None:
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError as error:
            if error.errno in _OUT_OF_RESOURCES:  # otherwise the connection is gone again
                self._loop.remove_reader(self._sock.fileno())
                self._pause = self._loop.call_later(_PAUSE_S, self._start_accepting)
            return
        self._on_connection(sock)
