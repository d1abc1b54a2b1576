"""The sending end of a TCP connection: frames written straight from pool memory."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice

import xxhash

from baton.errors import TransferError
from kv_transfer.stall import Heartbeat, StallWatch
from kv_transfer.transport import HEARTBEAT_S, Connection

HEADER = struct.Struct("<4sIQ")  # magic, bytes of the message (none: a heartbeat), tag
MAGIC = b"BKV1"
_MAX_BUFFERS = 256  # of one sendmsg; IOV_MAX is 1024
_PIECE_BYTES = 2 * 2**20  # offered at once: what the kernel took of it is digested while the cache has it
_BUDGET_BYTES = 8 * 2**20  # written in one go, before other tasks have a turn


class TcpConnection(Connection):
    """Messages leave in the order of the calls to `send`."""

    digests = True

    def __init__(self, sock: socket.socket, on_close: Callable[[], None], stall_s: float) -> None:
        self._sock = sock
        self._on_close = on_close
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Message] = deque()
        self._stall = StallWatch(stall_s, lambda: self._close("the decode node takes no more bytes"))
        self._closed = False
        self._writing = False
        self._heartbeat = Heartbeat(HEARTBEAT_S, self._beat)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    async def send(self, tag: int, views: Sequence[memoryview]) -> int:
        """Returns when the kernel has all of it."""
        if self._closed:
            raise TransferError("the connection to the decode node is closed")
        return await self._enqueue(tag, views)

    async def close(self) -> None:
        """Idempotent. Nothing is read after it."""
        self._close("the connection was closed")

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
        message = self._queue[0]
        num_bytes = self._sock.sendmsg(message.front())
        message.advance(num_bytes)
        self._stall.moved()
        if not message.left:
            self._queue.popleft()
            self._stall.finished()
            message.end()
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
            self._queue.popleft().fail(reason)
        self._on_close()


class _Message:
    """What is left of one, and the digest of what is gone."""

    def __init__(self, tag: int, views: Sequence[memoryview], done: asyncio.Future[int]) -> None:
        self.done = done
        self.done.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody awaits a heartbeat
        header = HEADER.pack(MAGIC, sum(view.nbytes for view in views), tag)
        self.left = deque([memoryview(header), *views])
        self._digest = xxhash.xxh3_64()
        self._num_header_bytes = len(header)  # of what is left

    def front(self) -> list[memoryview]:
        """About a piece of it."""
        room, found = _PIECE_BYTES, []
        for view in islice(self.left, _MAX_BUFFERS):
            found.append(view[:room])
            room -= view.nbytes
            if room <= 0:
                break
        return found

    def advance(self, num_bytes: int) -> None:
        """So many bytes are gone."""
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
        """All of it is gone."""
        if not self.done.done():  # cancelled, by a loop that ends
            self.done.set_result(self._digest.intdigest())

    def fail(self, reason: str) -> None:
        """The rest of it will not go."""
        if not self.done.done():
            self.done.set_exception(TransferError(reason))
