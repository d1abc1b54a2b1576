"""The sending end of a connection over a socket: writes when the kernel takes more, and ends once, whatever ends it."""

import abc
import asyncio
import socket
from collections.abc import Callable

from baton.errors import TransferError
from kv_transfer.stall import Heartbeat, StallWatch
from kv_transfer.transport import HEARTBEAT_S, Connection


class SocketConnection(Connection):
    """What is written, and who waits for it, is the subclass's."""

    def __init__(self, sock: socket.socket, on_close: Callable[[], None], stalled: str) -> None:
        """`stalled` says what has happened when nothing has moved for too long."""
        self._sock = sock
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._stall = StallWatch(stalled, lambda: self._close(stalled))
        self._closed = False
        self._writing = False
        self._heartbeat = Heartbeat(HEARTBEAT_S, self._beat)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    async def close(self) -> None:
        """Idempotent. A receiver finds the connection closed, and drops what it was reading."""
        self._close("the connection was closed")

    @abc.abstractmethod
    def _beat(self) -> None:
        """Say something, where nothing else is said."""

    @abc.abstractmethod
    def _on_readable(self) -> None:
        """The receiver has said something, or has closed."""

    @abc.abstractmethod
    def _write(self) -> None:
        """Write what there is; BlockingIOError where the kernel takes no more."""

    @property
    @abc.abstractmethod
    def _has_more(self) -> bool:
        """Whether anything is left to be written."""

    @abc.abstractmethod
    def _drop(self, reason: str) -> None:
        """Nothing more leaves: whoever waits gets a TransferError."""

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
