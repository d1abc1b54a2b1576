"""The client's side of `grpc.aio` over the simulated network: channels, and in `rpc_calls` the calls on them.

Stands in for what `baton.net.rpc.channel` makes. Messages are really serialized. One connection per channel carries all
of its calls. A call without a connection waits for one being made, and fails at once while the last failure is recent.
"""

import asyncio
from typing import Any

from grpc import StatusCode

from tests.simulation.loop import current_process
from tests.simulation.network import Network, Refused
from tests.simulation.rpc_calls import Call, StreamCall, UnaryCall
from tests.simulation.rpc_wire import Wire

CONNECT_S = 1.0
BACKOFF_S = (0.1, 1.0)


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

    def begin(self, call: Call) -> int:
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
            return kind(self, path, serialize or bytes, deserialize, request, timeout)  # without one: bytes are sent

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
