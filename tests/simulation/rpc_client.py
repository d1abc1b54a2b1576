"""The client's side of `grpc.aio` over the simulated network: channels, and calls with deadlines and cancellation.

Stands in for what `baton.net.rpc.channel` makes. Messages are really serialized. One connection per channel carries all
of its calls. A call without a connection waits for one being made, and fails at once while the last failure is recent.
"""

import asyncio
from collections import deque
from typing import Any

from grpc import StatusCode, aio

from tests.simulation.loop import current_process
from tests.simulation.network import Network, Refused
from tests.simulation.rpc_wire import Wire

CONNECT_S = 1.0
BACKOFF_S = (0.1, 1.0)
MAX_UNARRIVED = 64  # messages that a stream may be ahead of the network


class SimChannel:
    """A client channel. `address` is host:port; the port alone counts."""

    def __init__(self, network: Network, address: str) -> None:
        self.network = network
        self._port = int(address.rpartition(":")[2])
        self._process = current_process()
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self._calls: dict[int, Call] = {}
        self._next_call = 0
        self._connecting: asyncio.Task[None] | None = None
        self._backoff_s = BACKOFF_S[0]
        self._retry_s = 0.0
        self._closed = False

    def unary_unary(self, path: str, serialize: Any = None, deserialize: Any = None, **options: Any) -> Any:
        return self._method(UnaryCall, path, options.get("request_serializer", serialize),
                            options.get("response_deserializer", deserialize))  # fmt: skip

    def unary_stream(self, path: str, serialize: Any = None, deserialize: Any = None, **options: Any) -> Any:
        return self._method(StreamCall, path, options.get("request_serializer", serialize),
                            options.get("response_deserializer", deserialize))  # fmt: skip

    stream_stream = unary_stream

    async def close(self, grace: float | None = None) -> None:
        """Cancels what is under way."""
        self._closed = True
        for call in list(self._calls.values()):
            call.cancel()
        if self._connecting:
            self._connecting.cancel()
        if self._wire:
            self._wire.close()

    def begin(self, call: "Call") -> int:
        """Send the call off as soon as there is a connection; its number."""
        self._next_call += 1
        self._calls[self._next_call] = call
        if self._closed:
            call.finish(StatusCode.CANCELLED, "the channel is closed")
        elif self._wire:
            self._loop.call_soon(call.on_connected, self._wire)
        elif self._connecting is None and self._loop.time() < self._retry_s:
            self._loop.call_soon(call.finish, StatusCode.UNAVAILABLE, "failed to connect to all addresses")
        elif self._connecting is None:
            self._connecting = self._loop.create_task(self._connect())
        return self._next_call

    def over(self, number: int) -> None:
        """A call has ended."""
        self._calls.pop(number, None)

    def _method(self, kind: Any, path: str, serialize: Any, deserialize: Any) -> Any:
        def begin(request: Any = None, *, timeout: float | None = None, metadata: Any = None) -> Any:
            return kind(self, path, serialize, deserialize, request, timeout)

        return begin

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_S):
                end = await self.network.connect(self._process, self._port)
        except (Refused, TimeoutError):
            self._connecting = None
            self._retry_s = self._loop.time() + self._backoff_s
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_S[1])
            self._fail_all("failed to connect to all addresses")
            return
        self._connecting = None
        self._backoff_s = BACKOFF_S[0]
        self._wire = Wire(end, self._on_frame, self._on_lost)
        for call in list(self._calls.values()):
            call.on_connected(self._wire)

    def _on_lost(self, wire: Wire) -> None:
        self._wire = None
        self._fail_all("connection lost")

    def _fail_all(self, details: str) -> None:
        for call in list(self._calls.values()):
            call.finish(StatusCode.UNAVAILABLE, details)

    def _on_frame(self, kind: str, number: int, *payload: Any) -> None:
        call = self._calls.get(number)
        if call is None:
            return
        if kind == "data":
            call.on_message(payload[0])
        elif kind == "status":
            call.on_status(*payload)


class Call:
    """A client's call."""

    def __init__(
        self, channel: SimChannel, path: str, serialize: Any, deserialize: Any, request: Any, timeout: float | None
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
