"""A KV transport over the simulated network, harsher than the real ones in all that their interface allows.

Messages travel in pieces and land side by side, each piece a while after it came, so memory is seen while it is being
written. What has begun to land goes on for a moment after its connection has closed, as UCX does it; only then is it
`lost`. A sender reads piece by piece too. `Fence` looks at each piece, whether the memory belongs to whoever touches it.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from baton.errors import TransferError
from kv_transfer.stall import Heartbeat, StallWatch
from kv_transfer.transport import CONNECT_TIMEOUT_S, HEARTBEAT_S, STALL_S, Connection, Inbox, Listener, Peer, Transport
from tests.simulation.loop import Process, Violation, current_process
from tests.simulation.network import End, Network, Refused

PIECE_BYTES = 24
LANDING_S = 0.004
AFTERWARDS_S = 0.4
MAX_UNARRIVED = 4


class Fence:
    """Knows which block a piece of pool memory is, and who may touch it."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def check_write(self, view: memoryview) -> None:
        """Only blocks reserved for exactly one request, that were not in its prefix cache."""
        for block in self._blocks(view):
            engine = self._process.parts["engine"]
            owners = [
                request
                for request in engine._scheduler.requests()
                if block in request.block_ids or block in request.chain
            ]
            reserved = [r for r in owners if r.state.name == "RESERVED" and block in r.block_ids[r.num_present_blocks :]]
            if len(owners) != 1 or not reserved:
                raise Violation(f"{self._process}: block {block} is written by a transfer, and not leased")

    def check_read(self, view: memoryview) -> None:
        """Only blocks that somebody holds."""
        for block in self._blocks(view):
            if not self._process.parts["engine"].blocks._ref_counts[block]:
                raise Violation(f"{self._process}: block {block} is read by a transfer, and free")

    def _blocks(self, view: memoryview) -> range:
        engine = self._process.parts["engine"]
        at = np.frombuffer(view, np.uint8).ctypes.data - engine.pool.data_ptr()
        size, num_blocks = engine.layout.block_group_bytes, engine.num_blocks
        if not 0 <= at < engine.layout.pool_bytes(num_blocks):
            return range(0)  # not of the pool: a copy that a fault has damaged
        first, last = at // size, (at + view.nbytes - 1) // size
        return range(first % num_blocks, last % num_blocks + 1)


class SimTransport(Transport):
    """One way for messages to travel; stands in for tcp."""

    name = "tcp"

    def __init__(self, network: Network) -> None:
        self._network = network

    async def listen(self, host: str, inbox: Inbox) -> "SimListener":
        return SimListener(self._network, inbox)

    async def connect(self, host: str, port: int, secret: bytes, on_close: Callable[[], None]) -> "SimConnection":
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                end = await self._network.connect(current_process(), port)
                connection = SimConnection(self._network, end, on_close)
                end.send(("secret", secret))
                await connection.welcomed
        except (Refused, TimeoutError) as error:
            raise TransferError("no data connection to the decode node") from error
        return connection


class SimConnection(Connection):
    """The sending end."""

    def __init__(self, network: Network, end: End, on_close: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._network, self._end, self._on_close = network, end, on_close
        self._fence = Fence(current_process())
        self.welcomed = loop.create_future()
        self._closed = False
        self._sends: dict[asyncio.Task[Any], None] = {}
        self._moved = asyncio.Event()
        self._stall = StallWatch(STALL_S, self._lose)
        self._heartbeat = Heartbeat(HEARTBEAT_S, lambda: end.send(("beat",)))
        end.on_data, end.on_end, end.on_arrival = self._on_data, self._lose, self._on_arrival

    async def send(self, tag: int, views: Sequence[memoryview]) -> None:
        self._check_open()
        self._stall.started()
        task = asyncio.current_task()
        self._sends[task] = None
        try:
            await self._send(tag, views)
        finally:
            del self._sends[task]
            self._moved.set()
            if not self._closed:
                self._stall.finished()

    async def close(self) -> None:
        self._lose()
        while self._sends:
            self._moved.clear()
            await self._moved.wait()

    async def _send(self, tag: int, views: Sequence[memoryview]) -> None:
        num_bytes = sum(view.nbytes for view in views)
        self._end.send(("head", tag, num_bytes))
        for view in views:
            for start in range(0, view.nbytes, PIECE_BYTES):
                while self._end.num_unarrived >= MAX_UNARRIVED:
                    self._moved.clear()
                    await self._moved.wait()
                    self._check_open()
                piece = view[start : start + PIECE_BYTES]
                self._fence.check_read(piece)
                self._end.send(("piece", tag, self._damaged(bytes(piece))))
                await asyncio.sleep(self._network.rng.random() * LANDING_S)
                self._check_open()

    def _damaged(self, data: bytes) -> bytes:
        if not self._network.happens(self._network.corruption):
            return data
        at = self._network.rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << self._network.rng.randrange(8)]) + data[at + 1 :]

    def _on_data(self, data: Any) -> None:
        if not self.welcomed.done():
            self.welcomed.set_result(None)

    def _on_arrival(self) -> None:
        self._stall.moved()
        self._moved.set()

    def _check_open(self) -> None:
        if self._closed:
            raise TransferError("the connection to the decode node was lost")

    def _lose(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._stall.close()
        self._heartbeat.close()
        self._end.close()
        self._moved.set()
        if not self.welcomed.done():
            self.welcomed.set_exception(Refused("the secret was refused"))
            self.welcomed.exception()
        self._on_close()


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
        self._stall = StallWatch(STALL_S, self.close)
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
            self._landings[tag] = Landing(self, self._listener, tag, slot.view)
        if network.happens(network.duplicates):
            self._loop.call_later(network.rng.random(), self._begin_again, tag, num_bytes)

    def _begin_again(self, tag: int, num_bytes: int) -> None:
        """A message that comes twice: nothing of it, or noise, if it is let in."""
        if self._closed or tag in self._landings:
            return
        if slot := self._listener.inbox.claim(tag, num_bytes, self._peer):
            self._landings[tag] = Landing(self, self._listener, tag, slot.view)
            self._landings[tag].add(bytes(num_bytes))


class Landing:
    """A message on its way into its slot."""

    def __init__(self, incoming: Incoming, listener: SimListener, tag: int, view: memoryview) -> None:
        self._incoming, self._listener = incoming, listener
        self._tag, self._view = tag, view
        self._at = 0
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
        piece = self._pieces[0]
        target = self._view[self._at : self._at + len(piece)]
        self._listener.fence.check_write(target)
        target[:] = piece
        self._at += len(piece)
        self._pieces.popleft()
        if self._at == self._view.nbytes:
            self._is_over = True
            self._incoming.landed(self._tag)
            self._listener.inbox.arrived(self._tag)
        elif self._pieces:
            self._schedule()
