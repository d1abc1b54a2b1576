"""The server's side of `grpc.aio` over the simulated network; stands in for what `baton.net.rpc.server` makes.

A request may come a second time, seconds later, and a message of a stream may come twice, where a fault has it so.
"""

import asyncio
import inspect
from collections import deque
from typing import Any

from grpc import StatusCode, aio

from tests.simulation.loop import current_process
from tests.simulation.network import End, Network
from tests.simulation.rpc_wire import Wire

MAX_UNARRIVED = 64  # messages that a stream may be ahead of the network


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
        if not network.happens(network.skips):
            self._send("data", data)
        if network.happens(network.duplicates):
            self._send("data", data)
        await asyncio.sleep(0)
        wire = self._wire
        while wire and not wire.lost and wire.end.num_unarrived > MAX_UNARRIVED:  # noqa: ASYNC110
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
