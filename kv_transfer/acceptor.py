"""A listening socket in the event loop."""

import asyncio
import errno
import socket
from collections.abc import Callable

_PAUSE_S = 0.2  # for want of descriptors: all the while the loop would be told that somebody waits
_WANT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Hands every connection to `on_connection`, until closed."""

    def __init__(self, sock: socket.socket, on_connection: Callable[[socket.socket], None]) -> None:
        """`sock` listens, and is closed with this."""
        sock.setblocking(False)
        self._sock = sock
        self._on_connection = on_connection
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._go_on()

    def close(self) -> None:
        """Idempotent."""
        if self._pause:
            self._pause.cancel()
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def _go_on(self) -> None:
        self._loop.add_reader(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._sock.accept()
        except OSError as error:  # else it is gone again
            if error.errno in _WANT:
                self._loop.remove_reader(self._sock.fileno())
                self._pause = self._loop.call_later(_PAUSE_S, self._go_on)
            return
        self._on_connection(sock)
