"""The sending end of a TCP connection: frames written straight from pool memory."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

from baton.errors import TransferError
from kv_transfer.stall import Heartbeat, StallWatch
from kv_transfer.transport import HEARTBEAT_S, Connection

HEADER = struct.Struct("<4sIQ")  # magic, bytes of the message (none: a heartbeat), tag
MAGIC = b"BKV1"
_MAX_BUFFERS = 256  # of one sendmsg; IOV_MAX is 1024
_BUDGET_BYTES = 8 * 2**20  # written in one go, before other tasks have a turn


class TcpConnection(Connection):
    """Messages leave in the order of the calls to `send`."""

    def __init__(self, sock: socket.socket, on_close: Callable[[], None], stall_s: float) -> None:
        self._sock = sock
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[deque[memoryview], asyncio.Future[None]]] = deque()
        self._stall = StallWatch(stall_s, lambda: self._close("the decode node takes no more bytes"))
        self._closed = False
        self._writing = False
        self._heartbeat = Heartbeat(HEARTBEAT_S, self._beat)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    async def send(self, tag: int, views: Sequence[memoryview]) -> None:
        """Returns when the kernel has all of it."""
        if self._closed:
            raise TransferError("the connection to the decode node is closed")
        await self._enqueue(tag, views)

    async def close(self) -> None:
        """Idempotent. Nothing is read after it."""
        self._close("the connection was closed")

    def _beat(self) -> None:
        if not self._queue:
            self._enqueue(0, [])

    def _enqueue(self, tag: int, views: Sequence[memoryview]) -> asyncio.Future[None]:
        header = HEADER.pack(MAGIC, sum(view.nbytes for view in views), tag)
        done: asyncio.Future[None] = self._loop.create_future()
        done.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody awaits a heartbeat
        self._queue.append((deque([memoryview(header), *views]), done))
        self._stall.started()
        if not self._writing:
            self._flush()
        return done

    def _on_readable(self) -> None:
        """The receiver never writes: this is its end."""
        self._close("the decode node closed the connection")

    def _flush(self) -> None:
        budget = _BUDGET_BYTES
        try:
            while self._queue and budget > 0:
                budget -= self._write_some()
        except BlockingIOError:
            pass
        except OSError as error:
            self._close(f"the connection to the decode node broke: {error.strerror}")
        self._watch_writable(bool(self._queue))

    def _write_some(self) -> int:
        buffers, done = self._queue[0]
        num_bytes = self._sock.sendmsg([buffers[i] for i in range(min(len(buffers), _MAX_BUFFERS))])
        _drop_front(buffers, num_bytes)
        self._stall.moved()
        if not buffers:
            self._queue.popleft()
            self._stall.finished()
            if not done.done():  # cancelled, by a loop that ends
                done.set_result(None)
        return num_bytes

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
        while self._queue:
            _, done = self._queue.popleft()
            if not done.done():
                done.set_exception(TransferError(reason))
        self._on_close()


def _drop_front(buffers: deque[memoryview], num_bytes: int) -> None:
    while buffers and num_bytes >= buffers[0].nbytes:
        num_bytes -= buffers.popleft().nbytes
    if num_bytes:
        buffers[0] = buffers[0][num_bytes:]
