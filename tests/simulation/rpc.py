"""gRPC (`grpc.aio`) over the simulated network: calls of four kinds, deadlines, cancellation, keepalive.

Stands in for what `baton.rpc` makes. Requests and responses are really serialized. One connection per channel carries
all of its calls. Both ends ping after PING_S of silence and give the connection up when there is no answer in PONG_S;
a call without a connection waits for one being made, and fails at once while the last attempt's failure is recent.
"""

import asyncio
import inspect
from collections import deque
from typing import Any

from grpc import StatusCode, aio

from tests.simulation.loop import current_process
from tests.simulation.network import End, Network, Refused

PING_S = 2.0
PONG_S = 1.0
CONNECT_S = 1.0
BACKOFF_S = (0.1, 1.0)
MAX_UNARRIVED = 64  # messages that a stream may be ahead of the network

_EOF = object()


class Wire:
    """A connection that carries calls, as one of its ends sees it."""

    def __init__(self, end: End, on_frame: Any, on_lost: Any) -> None:
        self.end = end
        self.lost = False
        self._on_frame, self._on_lost = on_frame, on_lost
        self._loop = asyncio.get_running_loop()
        self._heard_s = self._loop.time()
        end.on_data, end.on_end = self._on_data, self._lose
        self._ping = self._loop.call_later(PING_S, self._check)
        self._verdict: asyncio.TimerHandle | None = None

    def send(self, *frame: Any) -> None:
        """One frame; its second member is the call's number."""
        self.end.send(frame)

    def close(self) -> None:
        """Idempotent."""
        self.end.close()
        self._lose()

    def _on_data(self, frame: tuple[Any, ...]) -> None:
        if self.lost:
            return
        self._heard_s = self._loop.time()
        if frame[0] == "ping":
            self.end.send(("pong",))
        elif frame[0] != "pong":
            self._on_frame(*frame)

    def _check(self) -> None:
        if self._loop.time() - self._heard_s >= PING_S:
            self.end.send(("ping",))
            self._verdict = self._loop.call_later(PONG_S, self._judge, self._heard_s)
        self._ping = self._loop.call_later(PING_S, self._check)

    def _judge(self, heard_s: float) -> None:
        if self._heard_s == heard_s:
            self.close()

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self._ping.cancel()
            if self._verdict:
                self._verdict.cancel()
            self._on_lost(self)


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
        self._wire.send("data", self._number, self._serialize(message))
        await asyncio.sleep(0)


class SimServer:
    """A server; `start` it in the process that it belongs to."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._handlers: dict[str, Any] = {}
        self._wires: dict[Wire, dict[int, ServerCall]] = {}
        self._port = 0
        self._loop = asyncio.get_running_loop()

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """All are registered by name as well."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        for name, handler in handlers.items():
            self._handlers[f"/{service}/{name}"] = handler

    def add_insecure_port(self, address: str) -> int:
        self._port = self.network.listen(current_process(), self._accept, int(address.rpartition(":")[2]))
        return self._port

    async def start(self) -> None:
        """It listens already."""

    async def stop(self, grace: float | None) -> None:
        """Takes no new calls; those under way have `grace` seconds."""
        self.network.unlisten(self._port)
        running = [call.task for calls in self._wires.values() for call in calls.values()]
        if running and grace:
            await asyncio.wait(running, timeout=grace)
        for wire in list(self._wires):
            wire.close()

    def _accept(self, end: End) -> None:
        calls: dict[int, ServerCall] = {}

        def on_frame(kind: str, number: int, *payload: Any) -> None:
            if kind == "call":
                calls[number] = ServerCall(self, wire, number, *payload)
                calls[number].task.add_done_callback(lambda _: calls.pop(number, None))
            elif kind == "data" and number in calls:
                calls[number].on_message(payload[0])
            elif kind == "reset" and number in calls:
                calls[number].end()

        def on_lost(wire: Wire) -> None:
            self._wires.pop(wire, None)
            for call in list(calls.values()):
                call.end()

        wire = Wire(end, on_frame, on_lost)
        self._wires[wire] = calls

    def handler(self, path: str) -> Any:
        return self._handlers.get(path)


class ServerCall:
    """A call on the server: also the context that servicers get, and the iterator over its requests."""

    def __init__(self, server: SimServer, wire: Wire | None, number: int, path: str, timeout: float | None) -> None:
        self._server, self._wire, self._number = server, wire, number
        self._path, self._timeout = path, timeout
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Any] = deque()
        self._moved = asyncio.Event()
        self._is_over = False
        self._is_cancelled = False
        self._abort: tuple[StatusCode, str, Any] | None = None
        self._handler = server.handler(path)
        self.task = self._loop.create_task(self._serve())
        self._timer = None if timeout is None else self._loop.call_later(max(timeout, 0), self.end)

    # for the network

    def on_message(self, data: bytes) -> None:
        self._inbox.append(data)
        self._moved.set()
        if self._wire is not None and not self._handler.request_streaming:
            self._come_again(data)

    def end(self) -> None:
        """The caller has gone."""
        self._is_over = self._is_cancelled = True
        self._moved.set()
        self.task.cancel()

    def _come_again(self, data: bytes) -> None:
        """Something on the way may send a request twice; nobody waits for the second answer."""
        network = self._server.network
        if self._handler.response_streaming or not network.happens(network.duplicates):
            return

        def again() -> None:
            ServerCall(self._server, None, 0, self._path, self._timeout).on_message(data)

        self._loop.call_later(network.rng.random() ** 3 * 8, again)

    # for servicers

    async def write(self, message: Any) -> None:
        data = self._handler.response_serializer(message)
        network = self._server.network
        self._send("data", data)
        if network.happens(network.duplicates):
            self._send("data", data)
        await asyncio.sleep(0)
        while self._wire is not None and not self._wire.lost and self._wire.end.num_unarrived > MAX_UNARRIVED:
            await asyncio.sleep(0.01)

    async def abort(self, code: StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        self._abort = code, details, trailing_metadata
        raise aio.AbortError("Locally aborted.")

    def cancelled(self) -> bool:
        return self._is_cancelled

    def __aiter__(self) -> "ServerCall":
        return self

    async def __anext__(self) -> Any:
        while not self._inbox:
            if self._is_over:
                raise StopAsyncIteration
            self._moved.clear()
            await self._moved.wait()
        return self._handler.request_deserializer(self._inbox.popleft())

    # its task

    async def _serve(self) -> None:
        status: tuple[StatusCode, str, Any] = StatusCode.OK, "", ()
        try:
            if self._handler is None:
                status = StatusCode.UNIMPLEMENTED, "no such method", ()
            else:
                await self._handle()
        except aio.AbortError:
            status = self._abort or (StatusCode.UNKNOWN, "", ())
        except asyncio.CancelledError:
            status = StatusCode.CANCELLED, "", ()
        except StopAsyncIteration:
            status = StatusCode.CANCELLED, "", ()
        except Exception as error:
            self._loop.call_exception_handler({"message": "a servicer raised", "exception": error})
            status = StatusCode.UNKNOWN, f"Unexpected {type(error)}", ()
        self._is_over = True
        self._moved.set()
        if self._timer:
            self._timer.cancel()
        if not self._is_cancelled:
            self._send("status", *status)

    async def _handle(self) -> None:
        handler = self._handler
        argument = self if handler.request_streaming else await anext(self)
        method = handler.stream_stream if handler.request_streaming else handler.unary_stream or handler.unary_unary
        outcome = method(argument, self)
        if inspect.isasyncgen(outcome):
            async for message in outcome:
                await self.write(message)
            return
        response = await outcome
        if not handler.response_streaming:
            self._send("data", handler.response_serializer(response))

    def _send(self, kind: str, *payload: Any) -> None:
        if self._wire is not None:
            self._wire.send(kind, self._number, *payload)

