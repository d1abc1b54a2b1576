"""The sending end of a shared-memory connection: says where messages lie, and hears when they have been fetched."""

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import Callable, Sequence

from baton.errors import TransferError
from kv_transfer.shm.frames import HEARTBEAT, MAX_PACKET_BYTES, MAX_RUNS, Frame, acked
from kv_transfer.shm.process_memory import runs_of
from kv_transfer.stall import Heartbeat, StallWatch
from kv_transfer.transport import HEARTBEAT_S, Connection


class ShmConnection(Connection):
    """A send ends when the receiver has copied the message, so it needs no memory but the views themselves."""

    def __init__(self, sock: socket.socket, on_close: Callable[[], None], stall_s: float) -> None:
        self._sock = sock
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._sequence = itertools.count(1)
        self._unsent: deque[bytes] = deque()
        self._waiting: dict[int, tuple[asyncio.Future[None], Sequence[memoryview]]] = {}
        self._stall = StallWatch(stall_s, lambda: self._close("the decode node fetches no more messages"))
        self._closed = False
        self._writing = False
        self._heartbeat = Heartbeat(HEARTBEAT_S, self._beat)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    async def send(self, tag: int, views: Sequence[memoryview]) -> None:
        """Returns when the receiver has all of it."""
        if self._closed:
            raise TransferError("the connection to the decode node is closed")
        if len(views) > MAX_RUNS:
            views = [memoryview(bytearray(b"".join(views)))]
        sequence = next(self._sequence)
        done: asyncio.Future[None] = self._loop.create_future()
        self._waiting[sequence] = done, views
        self._stall.started()
        self._send_packet(Frame(sequence, tag, runs_of(views)).pack())
        await done

    async def close(self) -> None:
        """Idempotent. A receiver that goes on reading finds the connection closed, and drops what it read."""
        self._close("the connection was closed")

    def _beat(self) -> None:
        if not self._unsent:
            self._send_packet(HEARTBEAT)

    def _on_readable(self) -> None:
        try:
            while not self._closed:
                done, _ = self._waiting.pop(acked(self._sock.recv(MAX_PACKET_BYTES)))
                self._stall.finished()
                if not done.done():  # cancelled, by a loop that ends
                    done.set_result(None)
        except BlockingIOError:
            pass
        except (OSError, ValueError, KeyError):  # nothing is what the end of the connection says
            self._close("the decode node closed the connection")

    def _send_packet(self, packet: bytes) -> None:
        self._unsent.append(packet)
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._sock.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError as error:
            self._close(f"the connection to the decode node broke: {error.strerror}")
        self._watch_writable(bool(self._unsent))

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
        self._unsent.clear()
        for done, _ in self._waiting.values():
            if not done.done():
                done.set_exception(TransferError(reason))
        self._waiting.clear()
        self._on_close()
