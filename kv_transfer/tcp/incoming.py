"""The receiving end of a TCP connection: reads messages straight into the memory that the inbox names."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable

import xxhash

from kv_transfer.stall import StallWatch
from kv_transfer.tcp.outgoing import HEADER, MAGIC
from kv_transfer.transport import CONNECT_TIMEOUT_S, SECRET_BYTES, Inbox, Peer

_MAX_MESSAGE_BYTES = 2**30  # a header that announces more is taken for garbage
_SCRATCH_BYTES = 256 * 1024  # size of the buffer into which dropped messages are read
_PIECE_BYTES = 512 * 1024  # bytes per read: digested while they are in the processor's cache
_BUDGET_BYTES = 8 * 2**20  # bytes read before other tasks get a turn


class TcpIncoming:
    """Reads the secret, then frames of header and message. A message is either written to its slot or dropped.

    `_target` is the buffer being filled, `_targets` are those to fill after it, `_then` is called when all are full.
    """

    WELCOME = b"\x01"

    def __init__(
        self,
        sock: socket.socket,
        inbox: Inbox,
        on_admitted: Callable[["TcpIncoming", Peer], None],
        on_closed: Callable[["TcpIncoming"], None],
    ) -> None:
        self.peer: Peer | None = None
        self._sock = sock
        self._inbox = inbox
        self._on_admitted = on_admitted
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._stall = StallWatch("a prefill node is silent over tcp", self.close)
        self._header = memoryview(bytearray(HEADER.size))
        self._target = memoryview(bytearray(SECRET_BYTES))
        self._targets: deque[memoryview] = deque()
        self._then = self._on_secret
        self._tag: int | None = None  # tag of the message being written to its slot
        self._digest = xxhash.xxh3_64()  # of what has arrived of that message
        self._num_left_to_drop = 0
        self._closed = False
        self._hello_timer = self._loop.call_later(CONNECT_TIMEOUT_S, self.close)
        self._secret = self._target
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def close(self) -> None:
        """Close the connection. Idempotent. Nothing is written to a slot after that."""
        if self._closed:
            return
        self._closed = True
        self._hello_timer.cancel()
        self._stall.close()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        self._on_closed(self)
        if self._tag is not None:
            self._inbox.lost(self._tag)
        if self.peer:
            self._inbox.disconnected(self.peer)

    def _on_readable(self) -> None:
        budget = _BUDGET_BYTES
        while budget > 0 and not self._closed:
            asked = min(len(self._target), _PIECE_BYTES)
            try:
                num_bytes = self._sock.recv_into(self._target, asked)
            except BlockingIOError:
                break
            except OSError:
                num_bytes = 0
            if num_bytes == 0:
                self.close()
            budget -= num_bytes
            self._stall.moved()
            if self._tag is not None:
                self._digest.update(self._target[:num_bytes])
            self._target = self._target[num_bytes:]
            if num_bytes < asked:
                break  # the socket is empty for now
            if self._target:
                continue
            if self._targets:
                self._target = self._targets.popleft()
            else:
                self._then()

    def _on_secret(self) -> None:
        self.peer = self._inbox.admit(bytes(self._secret))
        if self.peer is None:
            return self.close()
        self._hello_timer.cancel()
        self._stall.started()  # from now on there is a heartbeat
        self._on_admitted(self, self.peer)
        self._expect_header()
        try:
            self._sock.send(self.WELCOME)
        except OSError:
            self.close()
        return None

    def _expect_header(self) -> None:
        self._target, self._then = self._header, self._on_header

    def _on_header(self) -> None:
        magic, num_bytes, tag = HEADER.unpack(self._header)
        if magic != MAGIC or num_bytes > _MAX_MESSAGE_BYTES:
            return self.close()
        if num_bytes == 0:
            return self._expect_header()
        slot = self._inbox.claim(tag, num_bytes, self.peer)
        if slot is None:
            self._num_left_to_drop = num_bytes
            self._drop()
        else:
            self._targets.extend(slot.views)
            self._digest = xxhash.xxh3_64()
            self._tag, self._target, self._then = tag, self._targets.popleft(), self._on_message
        return None

    def _on_message(self) -> None:
        tag, self._tag = self._tag, None
        self._expect_header()
        if tag is not None:
            self._inbox.arrived(tag, self._digest.intdigest())

    def _drop(self) -> None:
        size = min(self._num_left_to_drop, _SCRATCH_BYTES)
        if size == 0:
            return self._on_message()
        self._num_left_to_drop -= size
        self._target, self._then = memoryview(bytearray(size)), self._drop
        return None
