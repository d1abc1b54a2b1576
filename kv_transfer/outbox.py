"""Sends the messages of all transfers to one peer: fairly, and with a bound on the bytes in flight.

Transfers take turns, one message each, as long as fewer than MAX_INFLIGHT_BYTES are in flight. The message that crosses
this bound is still sent, so one of any size can be. A message handed to the connection is always awaited.
"""

import asyncio
from collections import deque
from typing import Protocol

from baton.errors import TransferError
from kv_transfer.transport import AnyConnection

MAX_INFLIGHT_BYTES = 16 * 2**20


class Source(Protocol):
    """A transfer, as seen by the outbox."""

    def take(self) -> tuple[int, int, int] | None:
        """Take the next message that is ready: (index, tag, number of bytes), or None if there is none at present."""

    async def send(self, index: int, tag: int, connection: AnyConnection) -> int | None:
        """Send a message that was taken. Returns its digest if the connection computed it; raises TransferError."""
        ...

    def sent(self, index: int, error: TransferError | None, digest: int | None) -> None:
        """Called when the connection no longer reads the message, with the outcome of `send`."""


class Outbox:
    """Sends the ready messages of its sources, once `start` has given it a connection."""

    def __init__(self, max_inflight_bytes: int = MAX_INFLIGHT_BYTES) -> None:
        self._connection: AnyConnection | None = None
        self._ring: deque[Source] = deque()
        self._sends: set[asyncio.Task[None]] = set()
        self._inflight_bytes = 0
        self._max_inflight_bytes = max_inflight_bytes

    def start(self, connection: AnyConnection) -> None:
        """Send over this connection from now on."""
        self._connection = connection
        self._pump()

    def add(self, source: Source) -> None:
        """Queue a source that has messages ready, if it is not queued already."""
        if source not in self._ring:
            self._ring.append(source)
        self._pump()

    def discard(self, source: Source) -> None:
        """Take no more messages from this source."""
        if source in self._ring:
            self._ring.remove(source)

    def _pump(self) -> None:
        while self._connection and self._ring and self._inflight_bytes < self._max_inflight_bytes:
            source = self._ring.popleft()
            message = source.take()
            if message is None:
                continue
            self._ring.append(source)
            index, tag, num_bytes = message
            send = asyncio.get_running_loop().create_task(self._send(self._connection, source, index, tag, num_bytes))
            self._sends.add(send)
            send.add_done_callback(self._sends.discard)
            self._inflight_bytes += num_bytes

    async def _send(self, connection: AnyConnection, source: Source, index: int, tag: int, num_bytes: int) -> None:
        error = digest = None
        try:
            digest = await source.send(index, tag, connection)
        except TransferError as failure:
            error = failure
        self._inflight_bytes -= num_bytes
        source.sent(index, error, digest)
        self._pump()
