"""The transport within one process: the reference for the others, and all that a test of one node needs.

A message is copied in pieces, yielding to the event loop between them, so that cancellation and loss can occur midway.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence

from baton.errors import TransferError
from kv_transfer.transport import ByteConnection, Inbox, Listener, Peer, Transport

_PIECE_BYTES = 256 * 1024
_ports = itertools.count(1)
_listeners: dict[int, "LoopbackListener"] = {}


class LoopbackTransport(Transport):
    """Connects senders and receivers of this process."""

    name = "loopback"

    async def listen(self, host: str, inbox: Inbox) -> "LoopbackListener":
        """See `Transport`. The port is a number valid in this process only, not a socket."""
        listener = LoopbackListener(host, inbox)
        _listeners[listener.port] = listener
        return listener

    async def connect(self, host: str, port: int, secret: bytes, on_close: Callable[[], None]) -> "LoopbackConnection":
        """See `Transport`. Raises TransferError if nobody listens there or the secret is refused."""
        listener = _listeners.get(port)
        peer = listener.inbox.admit(secret) if listener else None
        if listener is None or peer is None:
            raise TransferError("the decode node refused the connection")
        await listener.disconnect(peer)
        connection = LoopbackConnection(listener, peer, on_close)
        listener.connections[peer] = connection
        return connection


class LoopbackConnection(ByteConnection):
    """Copies messages into the listener's slots."""

    def __init__(self, listener: "LoopbackListener", peer: Peer, on_close: Callable[[], None]) -> None:
        self._listener = listener
        self._peer = peer
        self._on_close = on_close
        self._closed = False
        self._turn = asyncio.Lock()

    async def send(self, tag: int, views: Sequence[memoryview]) -> None:
        """See `ByteConnection`. Sends one message at a time, in the order of the calls."""
        async with self._turn:
            self._check_open()
            inbox = self._listener.inbox
            slot = inbox.claim(tag, sum(view.nbytes for view in views), self._peer)
            if slot is None:
                return
            try:
                await self._copy(views, deque(slot.views))
            except TransferError:
                inbox.lost(tag)
                raise
            inbox.arrived(tag)

    async def _copy(self, views: Sequence[memoryview], targets: deque[memoryview]) -> None:
        for view in views:
            while view.nbytes:
                target = targets.popleft()
                num_bytes = min(view.nbytes, target.nbytes, _PIECE_BYTES)
                target[:num_bytes], view = view[:num_bytes], view[num_bytes:]
                if num_bytes < target.nbytes:
                    targets.appendleft(target[num_bytes:])
                await asyncio.sleep(0)
                self._check_open()

    def _check_open(self) -> None:
        if self._closed:
            raise TransferError("the connection to the decode node was lost")

    async def close(self) -> None:
        """See `Connection`. Waits until a copy in progress has noticed and stopped."""
        if not self._closed:
            self._closed = True
            async with self._turn:
                self._listener.connections.pop(self._peer, None)
                self._listener.inbox.disconnected(self._peer)
                self._on_close()


class LoopbackListener(Listener):
    """The listener of one receiver in this process."""

    def __init__(self, host: str, inbox: Inbox) -> None:
        self.host = host
        self.port = next(_ports)
        self.inbox = inbox
        self.connections: dict[Peer, LoopbackConnection] = {}

    async def disconnect(self, peer: Peer) -> None:
        """Close the peer's connection, if there is one."""
        if connection := self.connections.get(peer):
            await connection.close()

    async def close(self) -> None:
        """Accept no more, and disconnect everyone."""
        _listeners.pop(self.port, None)
        for peer in list(self.connections):
            await self.disconnect(peer)
