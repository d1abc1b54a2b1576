"""The receiving end of the simulated transport: messages land side by side, and some still do after the end."""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any

from kv_transfer.stall import StallWatch
from kv_transfer.transport import Inbox, Listener, Peer
from tests.simulation.loop import current_process
from tests.simulation.network import End, Network
from tests.simulation.transport_fence import Fence

LANDING_S = 0.004  # at most, between a piece's coming and its being written
AFTERWARDS_S = 0.4  # at most, for which what is landing goes on after a close


class SimListener(Listener):
    """The receiving end of all connections to a node."""

    def __init__(self, network: Network, inbox: Inbox) -> None:
        self.network, self.inbox = network, inbox
        self.host = "127.0.0.1"
        self.fence = Fence(current_process())
        self.connections: dict[Peer, Incoming] = {}
        self.port = network.listen(current_process(), lambda end: Incoming(self, end))

    async def disconnect(self, peer: Peer) -> None:
        if connection := self.connections.get(peer):
            connection.close()
            await connection.quiet()

    async def close(self) -> None:
        self.network.unlisten(self.port)
        for peer in list(self.connections):
            await self.disconnect(peer)


class Incoming:
    """The receiving end of one connection."""

    def __init__(self, listener: SimListener, end: End) -> None:
        self._listener, self._end = listener, end
        self._loop = asyncio.get_running_loop()
        self._peer: Peer | None = None
        self._closed = False
        self._landings: dict[int, Landing] = {}
        self._moved = asyncio.Event()
        self._stall = StallWatch("a prefill node is silent", self.close)
        end.on_data, end.on_end = self._on_data, self.close

    def close(self) -> None:
        """Idempotent. What is landing goes on for a moment."""
        if self._closed:
            return
        self._closed = True
        self._stall.close()
        self._end.close()
        delay_s = self._listener.network.rng.random() * AFTERWARDS_S
        for landing in list(self._landings.values()):
            self._loop.call_later(delay_s, landing.lose)
        if self._peer is not None:
            self._loop.call_later(delay_s, self._forget)
            self._listener.inbox.disconnected(self._peer)

    async def quiet(self) -> None:
        """Until nothing is being written."""
        while self._landings:
            self._moved.clear()
            await self._moved.wait()

    def landed(self, tag: int) -> None:
        """A message is whole, or will never be."""
        self._landings.pop(tag, None)
        self._moved.set()

    def _forget(self) -> None:
        if self._listener.connections.get(self._peer) is self:
            del self._listener.connections[self._peer]

    def _on_data(self, data: tuple[Any, ...]) -> None:
        if self._closed:
            return
        self._stall.moved()
        kind, *rest = data
        if kind == "secret":
            self._open(*rest)
        elif kind == "head":
            self._begin(*rest)
        elif kind == "piece" and (landing := self._landings.get(rest[0])):
            landing.add(rest[1])

    def _open(self, secret: bytes) -> None:
        self._peer = self._listener.inbox.admit(secret)
        if self._peer is None:
            self.close()
            return
        if old := self._listener.connections.get(self._peer):
            old.close()
        self._listener.connections[self._peer] = self
        self._stall.started()
        self._end.send(("welcome",))

    def _begin(self, tag: int, num_bytes: int) -> None:
        network = self._listener.network
        if tag not in self._landings and (slot := self._listener.inbox.claim(tag, num_bytes, self._peer)):
            self._landings[tag] = Landing(self, self._listener, tag, slot.views)
        if network.happens(network.duplicates):
            self._loop.call_later(network.rng.random(), self._begin_again, tag, num_bytes)

    def _begin_again(self, tag: int, num_bytes: int) -> None:
        """A message that comes twice: nothing of it, or noise, if it is let in."""
        if self._closed or tag in self._landings:
            return
        if slot := self._listener.inbox.claim(tag, num_bytes, self._peer):
            self._landings[tag] = Landing(self, self._listener, tag, slot.views)
            self._landings[tag].add(bytes(num_bytes))


class Landing:
    """A message on its way into its slot."""

    def __init__(self, incoming: Incoming, listener: SimListener, tag: int, views: Sequence[memoryview]) -> None:
        self._incoming, self._listener = incoming, listener
        self._tag, self._views = tag, deque(views)  # what is still to be filled
        self._pieces: deque[bytes] = deque()
        self._loop = asyncio.get_running_loop()
        self._is_over = False

    def add(self, piece: bytes) -> None:
        """Written a while later."""
        self._pieces.append(piece)
        if len(self._pieces) == 1:
            self._schedule()

    def lose(self) -> None:
        """Its connection is gone."""
        if not self._is_over:
            self._is_over = True
            self._incoming.landed(self._tag)
            self._listener.inbox.lost(self._tag)

    def _schedule(self) -> None:
        self._loop.call_later(self._listener.network.rng.random() * LANDING_S, self._write)

    def _write(self) -> None:
        if self._is_over:
            return
        left = memoryview(self._pieces.popleft())
        while left:
            view = self._views.popleft()
            piece, left = left[: view.nbytes], left[view.nbytes :]
            target, rest = view[: piece.nbytes], view[piece.nbytes :]
            self._listener.fence.check_write(target)
            target[:] = piece
            if rest:
                self._views.appendleft(rest)
        if not self._views:
            self._is_over = True
            self._incoming.landed(self._tag)
            self._listener.inbox.arrived(self._tag)
        elif self._pieces:
            self._schedule()
