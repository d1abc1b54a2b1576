"""The base of connections over a socket, on the sender's side: non-blocking writes, heartbeats, and one way to end."""

import abc
import asyncio
import socket
from collections.abc import Callable

from baton.errors import TransferError
from kv_transfer.stall import Heartbeat, StallWatch
from kv_transfer.transport import HEARTBEAT_S, Connection


class SocketConnection(Connection):
    """Subclasses keep the queue of what to write, and the futures of those who wait for it."""

    def __init__(self, sock: socket.socket, on_close: Callable[[], None], stalled: str) -> None:
        """`stalled` is the error message for the case that nothing has moved for too long."""
        self._sock = sock
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._stall = StallWatch(stalled, lambda: self._close(stalled))
        self._closed = False
        self._writing = False
        self._heartbeat = Heartbeat(HEARTBEAT_S, self._beat)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    async def close(self) -> None:
        """See `Connection`. A receiver that is still reading finds the connection closed, and drops what it read."""
        self._close("the connection was closed")

    @abc.abstractmethod
    def _beat(self) -> None:
        """Send a heartbeat, unless something is queued anyway."""

    @abc.abstractmethod
    def _on_readable(self) -> None:
        """Called when the receiver has sent something, or has closed the connection."""

    @abc.abstractmethod
    def _write(self) -> None:
        """Write what is queued. Raises BlockingIOError when the kernel takes no more."""

    @property
    @abc.abstractmethod
    def _has_more(self) -> bool:
        """Whether anything is left to be written."""

    @abc.abstractmethod
    def _drop(self, reason: str) -> None:
        """Discard what is queued, and fail every pending send with a TransferError."""

    def _check_open(self) -> None:
        if self._closed:
            raise TransferError("the connection to the decode node is closed")

    def _flush(self) -> None:
        try:
            self._write()
        except BlockingIOError:
            pass
        except OSError as error:
            self._close(f"the connection to the decode node broke: {error.strerror}")
        self._watch_writable(self._has_more)

    def _watch_writable(self, wanted: bool) -> None:
        if wanted == self._writing or self._closed:
            return
        self._writing = wanted
        if wanted:
            self._loop.add_writer(self._sock.fileno(), self._flush)
        else:
            self._loop.remove_writer(self._sock.fileno())

    def _close(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        self._stall.close()
        self._heartbeat.close()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._drop(reason)
        self._on_close()
