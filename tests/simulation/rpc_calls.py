"""Calls of a simulated channel (`rpc_client`): their deadlines, cancellation and outcome, as of `grpc.aio`."""

import asyncio
from collections import deque
from typing import Any, Protocol

from grpc import StatusCode, aio

from tests.simulation.network import Network
from tests.simulation.rpc_wire import Wire

MAX_UNARRIVED = 64  # messages that a stream may be ahead of the network


class Channel(Protocol):
    """What a call needs of its channel."""

    network: Network

    def begin(self, call: "Call") -> int: ...
    def over(self, number: int) -> None: ...


class Call:
    """A client's call."""

    def __init__(
        self, channel: "Channel", path: str, serialize: Any, deserialize: Any, request: Any, timeout: float | None
    ) -> None:
        self._channel = channel
        self._path = path
        self._serialize, self._deserialize = serialize, deserialize
        self._request = request
        self._loop = asyncio.get_running_loop()
        self._deadline_s = None if timeout is None else self._loop.time() + timeout
        self._timer = None if timeout is None else self._loop.call_later(max(timeout, 0), self._out_of_time)
        self._status: StatusCode | None = None
        self._details, self._trailing = "", ()
        self._cancelled = False
        self._inbox: deque[Any] = deque()
        self._wire: Wire | None = None
        self._changed: list[asyncio.Future[None]] = []
        self._number = channel.begin(self)

    def done(self) -> bool:
        return self._status is not None

    def cancelled(self) -> bool:
        return self._cancelled

    def cancel(self) -> bool:
        """Locally, and then on the server."""
        if self._status is not None:
            return False
        self._cancelled = True
        self._reset(StatusCode.CANCELLED, "Locally cancelled by application!")
        return True

    def finish(self, status: StatusCode, details: str = "", trailing: Any = ()) -> None:
        """The outcome is known. Idempotent."""
        if self._status is None:
            self._status, self._details, self._trailing = status, details, trailing
            if self._timer:
                self._timer.cancel()
            self._channel.over(self._number)
            self._wake()

    def on_connected(self, wire: Wire) -> None:
        if self._status is not None:
            return
        self._wire = wire
        timeout = None if self._deadline_s is None else self._deadline_s - self._loop.time()
        wire.send("call", self._number, self._path, timeout)
        if self._request is not None:
            wire.send("data", self._number, self._serialize(self._request))
        self._wake()

    def on_message(self, data: bytes) -> None:
        self._inbox.append(data)
        self._wake()

    def on_status(self, status: StatusCode, details: str, trailing: Any) -> None:
        self.finish(status, details, trailing)

    def _reset(self, status: StatusCode, details: str) -> None:
        self._inbox.clear()
        if self._wire:
            self._wire.send("reset", self._number)
        self.finish(status, details)

    def _out_of_time(self) -> None:
        if self._status is None:
            self._reset(StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _wake(self) -> None:
        changed, self._changed = self._changed, []
        for future in changed:
            if not future.done():
                future.set_result(None)

    async def _change(self) -> None:
        future = self._loop.create_future()
        self._changed.append(future)
        try:
            await future
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _raise_for_status(self) -> None:
        if self._cancelled:
            raise asyncio.CancelledError
        if self._status is not None and self._status is not StatusCode.OK:
            raise aio.AioRpcError(self._status, aio.Metadata(), aio.Metadata(*self._trailing), self._details)


class UnaryCall(Call):
    """One request, one response."""

    def __await__(self) -> Any:
        return self._response().__await__()

    async def _response(self) -> Any:
        while not self.done():
            await self._change()
        self._raise_for_status()
        return self._deserialize(self._inbox.popleft())


class StreamCall(Call):
    """A stream of responses, and perhaps of requests."""

    def __aiter__(self) -> "StreamCall":
        return self

    async def __anext__(self) -> Any:
        while not self._inbox:
            if self.done():
                self._raise_for_status()
                raise StopAsyncIteration
            await self._change()
        return self._deserialize(self._inbox.popleft())

    async def write(self, message: Any) -> None:
        if self.done():
            raise asyncio.InvalidStateError("RPC already finished.")
        while self._wire is None:
            await self._change()
            if self.done():
                self._raise_for_status()
        data, network = self._serialize(message), self._channel.network
        if not network.happens(network.skips):
            self._wire.send("data", self._number, data)
        if network.happens(network.duplicates):
            self._loop.call_later(network.rng.random() ** 3 * 8, self._come_again, data)
        await asyncio.sleep(0)
        wire = self._wire
        while not self.done() and wire.end.num_unarrived > MAX_UNARRIVED:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def _come_again(self, data: bytes) -> None:
        """Something on the way has kept a copy."""
        if not self.done() and self._wire is not None:
            self._wire.send("data", self._number, data)
