"""A KV transport over the simulated network, harsher than the real ones in all that their interface allows.

Messages travel in pieces and land side by side, each piece a while after it came, so memory is seen while it is being
written. What has begun to land goes on for a moment after its connection has closed, as UCX does it; only then is it
`lost`. A sender reads piece by piece too. `Fence` asks of each piece whether its memory belongs to whoever touches it.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from baton.errors import TransferError
from kv_transfer.stall import Heartbeat, StallWatch
from kv_transfer.transport import CONNECT_TIMEOUT_S, HEARTBEAT_S, ByteConnection, Inbox, Transport
from tests.simulation.loop import current_process
from tests.simulation.network import End, Network, Refused
from tests.simulation.transport_fence import Fence
from tests.simulation.transport_incoming import SimListener

PIECE_BYTES = 24
READING_S = 0.004  # at most, between two pieces
MAX_UNARRIVED = 4


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


class SimConnection(ByteConnection):
    """The sending end."""

    def __init__(self, network: Network, end: End, on_close: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self._network, self._end, self._on_close = network, end, on_close
        self._fence = Fence(current_process())
        self.welcomed = loop.create_future()
        self._closed = False
        self._sends: dict[asyncio.Task[Any], None] = {}
        self._moved = asyncio.Event()
        self._stall = StallWatch("the decode node takes nothing", self._lose)
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
                await asyncio.sleep(self._network.rng.random() * READING_S)
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
