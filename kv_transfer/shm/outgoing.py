"""The sending end of a connection within a host: announces messages, and learns when they have been fetched."""

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Callable, Sequence

from baton.errors import TransferError
from kv_transfer.shm.frames import HEARTBEAT, MAX_PACKET_BYTES, Frame, acked
from kv_transfer.shm.host_memory import MAX_RUNS, pack_runs
from kv_transfer.shm.process_memory import runs_of
from kv_transfer.socket_connection import SocketConnection
from kv_transfer.transport import ByteConnection


class FetchedConnection(SocketConnection):
    """A connection whose receiver fetches the messages itself, so sending needs no buffer.

    A receiver that goes on reading after `close` finds the connection closed, and drops what it read.
    """

    def __init__(self, sock: socket.socket, on_close: Callable[[], None]) -> None:
        super().__init__(sock, on_close, "the decode node fetches no more messages")
        self._sequence = itertools.count(1)
        self._unsent: deque[bytes] = deque()
        self._waiting: dict[int, asyncio.Future[None]] = {}

    async def fetched(self, tag: int, source: bytes) -> None:
        """Announce the message at `source`, and wait until the receiver has fetched all of it."""
        self._check_open()
        sequence = next(self._sequence)
        done = self._waiting[sequence] = self._loop.create_future()
        self._stall.started()
        self._send_packet(Frame(sequence, tag, source).pack())
        await done

    @property
    def _has_more(self) -> bool:
        return bool(self._unsent)

    def _beat(self) -> None:
        if not self._unsent:
            self._send_packet(HEARTBEAT)

    def _on_readable(self) -> None:
        try:
            while not self._closed:
                done = self._waiting.pop(acked(self._sock.recv(MAX_PACKET_BYTES)))
                self._stall.finished()
                if not done.done():  # it is cancelled when the event loop shuts down
                    done.set_result(None)
        except BlockingIOError:
            pass
        except (OSError, ValueError, KeyError):  # ValueError: also the empty packet at the end of the connection
            self._close("the decode node closed the connection")

    def _send_packet(self, packet: bytes) -> None:
        self._unsent.append(packet)
        if not self._writing:
            self._flush()

    def _write(self) -> None:
        while self._unsent:
            self._sock.send(self._unsent[0])
            self._unsent.popleft()

    def _drop(self, reason: str) -> None:
        self._unsent.clear()
        for done in self._waiting.values():
            if not done.done():
                done.set_exception(TransferError(reason))
        self._waiting.clear()


class ShmConnection(FetchedConnection, ByteConnection):
    """Sends messages that lie in this process's host memory."""

    async def send(self, tag: int, views: Sequence[memoryview]) -> None:
        """See `ByteConnection`. Returns when the receiver has copied all bytes."""
        if len(views) > MAX_RUNS:
            views = [memoryview(bytearray(b"".join(views)))]
        await self.fetched(tag, pack_runs(runs_of(views)))
