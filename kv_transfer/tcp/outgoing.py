"""The sending end of a TCP connection: writes messages straight from pool memory."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

import xxhash

from baton.errors import TransferError
from kv_transfer.socket_connection import SocketConnection
from kv_transfer.transport import ByteConnection

HEADER = struct.Struct("<4sIQ")  # magic, length of the message in bytes (0: a heartbeat), tag
MAGIC = b"BKV1"
_MAX_BUFFERS = 256  # per sendmsg; IOV_MAX is 1024
_PIECE_BYTES = 2 * 2**20  # offered per sendmsg: what the kernel takes is digested while it is in the processor's cache
_BUDGET_BYTES = 8 * 2**20  # bytes written before other tasks get a turn


class TcpConnection(SocketConnection, ByteConnection):
    """Messages leave in the order of the calls to `send`."""

    digests = True

    def __init__(self, sock: socket.socket, on_close: Callable[[], None]) -> None:
        super().__init__(sock, on_close, "the decode node takes no more bytes")
        self._queue: deque[_Message] = deque()

    async def send(self, tag: int, views: Sequence[memoryview]) -> int:
        """See `ByteConnection`. Returns the digest when the kernel has taken all bytes."""
        self._check_open()
        return await self._enqueue(tag, views)

    @property
    def _has_more(self) -> bool:
        return bool(self._queue)

    def _beat(self) -> None:
        if not self._queue:
            self._enqueue(0, [])

    def _enqueue(self, tag: int, views: Sequence[memoryview]) -> asyncio.Future[int]:
        message = _Message(tag, views, self._loop.create_future())
        self._queue.append(message)
        self._stall.started()
        if not self._writing:
            self._flush()
        return message.done

    def _on_readable(self) -> None:
        """The receiver never sends anything after its welcome, so the connection has ended."""
        self._close("the decode node closed the connection")

    def _write(self) -> None:
        budget = _BUDGET_BYTES
        while self._queue and budget > 0:
            budget -= self._write_some()

    def _write_some(self) -> int:
        message = self._queue[0]
        num_bytes = self._sock.sendmsg(message.front())
        message.advance(num_bytes)
        self._stall.moved()
        if not message.left:
            self._queue.popleft()
            self._stall.finished()
            message.end()
        return num_bytes

    def _drop(self, reason: str) -> None:
        while self._queue:
            self._queue.popleft().fail(reason)


class _Message:
    """The unsent rest of a message, and the digest of what has been sent."""

    def __init__(self, tag: int, views: Sequence[memoryview], done: asyncio.Future[int]) -> None:
        self.done = done
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())  # heartbeats are not awaited
        header = HEADER.pack(MAGIC, sum(view.nbytes for view in views), tag)
        self.left = deque([memoryview(header), *views])
        self._digest = xxhash.xxh3_64()
        self._num_header_bytes = len(header)  # unsent ones

    def front(self) -> list[memoryview]:
        """Return the buffers for the next sendmsg: up to _PIECE_BYTES, or _MAX_BUFFERS of them."""
        room, found = _PIECE_BYTES, []
        for view in islice(self.left, _MAX_BUFFERS):
            found.append(view[:room])
            room -= view.nbytes
            if room <= 0:
                break
        return found

    def advance(self, num_bytes: int) -> None:
        """Digest and remove the next `num_bytes`, which have been sent."""
        while num_bytes:
            view = self.left.popleft()
            gone = view[:num_bytes]
            if self._num_header_bytes:
                self._num_header_bytes -= gone.nbytes
            else:
                self._digest.update(gone)
            if gone.nbytes < view.nbytes:
                self.left.appendleft(view[num_bytes:])
            num_bytes -= gone.nbytes

    def end(self) -> None:
        """Complete the send: all of the message is sent."""
        if not self.done.done():  # it is cancelled when the event loop shuts down
            self.done.set_result(self._digest.intdigest())

    def fail(self, reason: str) -> None:
        """Fail the send: the rest of the message will not be sent."""
        if not self.done.done():
            self.done.set_exception(TransferError(reason))
