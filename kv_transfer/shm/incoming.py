"""The receiving end of a connection within a host: copies messages from the sender's memory into their slots.

Only this process writes to its pool, so a cancelled message is fenced as soon as its own copy has ended, and a copy can
be stopped between two pieces. A copied message counts only if, after its last byte, the sender was still alive and its
connection still open: a sender that wants its memory back closes the connection first.
"""

import asyncio
import contextlib
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Protocol

from kv_transfer.shm.frames import HEARTBEAT, MAX_PACKET_BYTES, WELCOME, Frame, Hello, ack, refusal
from kv_transfer.stall import StallWatch
from kv_transfer.transport import CONNECT_TIMEOUT_S, Inbox, Peer, Slot

_MAX_COPIES = 64  # per sender at once; further messages wait in its socket
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_HANGUP = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR | select.POLLNVAL


class SenderMemory(Protocol):
    """Access to one sender's memory, for as long as its connection lasts."""

    def size_of(self, source: bytes) -> int:
        """Return the length in bytes of the message at a frame's `source`. Raises ValueError for an invalid one."""
        ...

    def fetch(self, source: bytes, slot: Slot, is_over: Callable[[], bool]) -> int:
        """Copy the message to its slot and return its digest. Called in a thread; stops early once `is_over()`.

        Raises OSError or RuntimeError if the message could not be copied completely.
        """
        ...

    def close(self) -> None:
        """Release the access. No fetch is running any more."""


class ShmIncoming:
    """One connection. The kernel says who the sender is: the pid of the socket's other end, pinned by a pidfd."""

    def __init__(
        self,
        sock: socket.socket,
        inbox: Inbox,
        copiers: Executor,
        open_memory: Callable[[int, bytes], SenderMemory],
        on_admitted: Callable[[Peer], None],
        on_ended: Callable[["ShmIncoming"], None],
    ) -> None:
        """`open_memory(pid, hello.memory)` may raise OSError or ValueError to refuse the connection.

        `on_admitted` is called when the secret and the memory are accepted, `on_ended` when all copies have ended.
        """
        self.peer: Peer | None = None
        self._sock = sock
        self._inbox = inbox
        self._copiers = copiers
        self._open_memory = open_memory
        self._on_admitted = on_admitted
        self._on_ended = on_ended
        self._loop = asyncio.get_running_loop()
        self._stall = StallWatch("a prefill node is silent over shm", self.start_closing)
        self._memory: SenderMemory | None = None
        self._process = -1  # a pidfd
        self._num_copies = 0
        self._unsent: deque[bytes] = deque()  # acknowledgements that the sender's socket buffer had no room for
        self._reading = False
        self._closing = False
        self._ended = asyncio.Event()
        self._hello_timer = self._loop.call_later(CONNECT_TIMEOUT_S, self.start_closing)
        self._read(True)

    def start_closing(self) -> None:
        """Take no more messages, and stop the copies in progress. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._hello_timer.cancel()
        self._stall.close()
        self._read(False)
        self._loop.remove_writer(self._sock.fileno())
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self.peer:
            self._inbox.disconnected(self.peer)
        self._end_when_quiet()

    async def close(self) -> None:
        """Close the connection. Idempotent. Returns when nothing is written to a slot any more."""
        self.start_closing()
        await self._ended.wait()

    def _read(self, wanted: bool) -> None:
        if wanted and not self._reading:
            self._loop.add_reader(self._sock.fileno(), self._on_readable)
        elif self._reading and not wanted:
            self._loop.remove_reader(self._sock.fileno())
        self._reading = wanted

    def _on_readable(self) -> None:
        try:
            while self._reading:
                self._on_packet(self._sock.recv(MAX_PACKET_BYTES))
        except BlockingIOError:
            pass
        except (OSError, ValueError):  # an empty packet is the end of the connection
            self.start_closing()

    def _on_packet(self, packet: bytes) -> None:
        if self._memory is None:
            return self._on_hello(Hello.unpack(packet))
        self._stall.moved()
        if packet == HEARTBEAT:
            return None
        frame = Frame.unpack(packet)
        slot = self._inbox.claim(frame.tag, self._memory.size_of(frame.source), self.peer)
        if slot is None:
            self._acknowledge(frame)
        else:
            self._start_copy(self._memory, frame, slot)
        return None

    def _on_hello(self, hello: Hello) -> None:
        peer = self._inbox.admit(hello.secret)
        if peer is None:
            return self.start_closing()
        try:
            self._memory = self._opened(hello)
        except OSError as error:
            self._sock.send(refusal(f"this process may not read the prefill node's memory ({error.strerror or error})"))
            return self.start_closing()
        self._hello_timer.cancel()
        self._stall.started()  # from now on there is a heartbeat
        self._on_admitted(peer)
        self.peer = peer
        self._sock.send(WELCOME)
        return None

    def _opened(self, hello: Hello) -> SenderMemory:
        """Open the memory of the process at the socket's other end. Raises OSError or ValueError if that is refused."""
        credentials = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid = _CREDENTIALS.unpack(credentials)[0]
        if pid <= 0:
            raise ProcessLookupError("the prefill node is in another PID namespace")
        self._process = os.pidfd_open(pid)
        return self._open_memory(pid, hello.memory)

    def _start_copy(self, memory: SenderMemory, frame: Frame, slot: Slot) -> None:
        self._num_copies += 1
        self._read(self._num_copies < _MAX_COPIES)
        copy = self._loop.run_in_executor(self._copiers, self._copy, memory, frame, slot)
        copy.add_done_callback(lambda copy: self._copied(frame, copy))

    def _copy(self, memory: SenderMemory, frame: Frame, slot: Slot) -> int:
        """Copy one message, in a thread, and return its digest. Raises if the message is not complete."""
        if self._closing:
            raise ConnectionAbortedError("closing")
        digest = memory.fetch(frame.source, slot, lambda: self._closing)
        self._check_alive()
        return digest

    def _check_alive(self) -> None:
        """Raise ConnectionResetError if the sender has died or closed. Only after a copy does this prove it valid."""
        poll = select.poll()
        poll.register(self._sock.fileno(), _HANGUP)
        poll.register(self._process, select.POLLIN)
        if poll.poll(0):
            raise ConnectionResetError("the sender has closed its end")

    def _copied(self, frame: Frame, copy: "asyncio.Future[int]") -> None:
        self._num_copies -= 1
        if copy.cancelled() or copy.exception() or self._closing:
            self._inbox.lost(frame.tag)
            self.start_closing()
        else:
            self._inbox.arrived(frame.tag, copy.result())
            self._acknowledge(frame)
        self._end_when_quiet()

    def _acknowledge(self, frame: Frame) -> None:
        self._stall.moved()
        self._unsent.append(ack(frame.sequence))
        self._send_acks()

    def _send_acks(self) -> None:
        """Send the acknowledgements. While the sender does not read them, no more of its messages are taken."""
        try:
            while self._unsent:
                self._sock.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._sock.fileno(), self._send_acks)
            self._read(False)
        except OSError:
            self.start_closing()
        else:
            self._loop.remove_writer(self._sock.fileno())
            self._read(self._num_copies < _MAX_COPIES)

    def _end_when_quiet(self) -> None:
        if self._closing and self._num_copies == 0 and not self._ended.is_set():
            self._ended.set()
            self._on_ended(self)
            self._sock.close()
            if self._memory:
                self._memory.close()
            if self._process >= 0:
                os.close(self._process)
