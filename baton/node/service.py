"""Node.Attach: the stream on which a router says what it wants, and a node what came of it, and its load.

One stream per router. A router that attaches again begins anew; the older stream ends, and what still comes on it is
dropped. Both directions are numbered: a message that comes twice is dropped, a missing one ends the stream, and with it
every request on it, rather than leave one of them waiting for what was lost. Heartbeats come from the event loop, so
they go on while a long step runs.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc
from grpc import aio

from baton.errors import BatonError, InvalidRequest, NodeUnavailable
from baton.net import rpc_errors
from baton.node.session import Leg, Session
from baton.node.sessions import Sessions
from baton.request import Generation
from baton.v1 import node_pb2, node_pb2_grpc, transfer_pb2

_WRITE_TIMEOUT_S = 5.0
_FIRST_MESSAGE_S = 5.0

_log = logging.getLogger(__name__)

_Messages = AsyncIterator[node_pb2.RouterBatch]
_Context = aio.ServicerContext[Any, Any]


class Legs(Protocol):
    """What a node does with requests. Both return at once; what comes of it is told through the sessions."""

    def begin(self, generation: Generation, prefill_node_id: str, prefill_epoch: int) -> None:
        """Take a leg up, or refuse it."""

    def take_grant(self, leg: Leg, grant: transfer_pb2.Grant) -> None:
        """Where a leg that is here may ship its KV."""


class NodeService(node_pb2_grpc.NodeServicer):
    """The servicer; `sessions` is shared with the node's own service."""

    def __init__(self, sessions: Sessions, legs: Legs) -> None:
        self._sessions = sessions
        self._legs = legs

    async def Attach(  # type: ignore[override]  # noqa: N802
        self, request_iterator: _Messages, context: _Context
    ) -> None:
        """Until the router goes, attaches anew, or stops reading; or until it says what cannot be."""
        messages = aiter(request_iterator)
        try:
            session, stream = self._sessions.attach(await self._read_hello(messages))
        except BatonError as error:
            await rpc_errors.abort(context, error)
        reading = asyncio.create_task(self._read(session, stream, messages), name="router batches")
        try:
            await self._send_batches(session, stream, context)
        except TimeoutError:
            self._sessions.lose(session, stream)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the stream is not read")
        finally:
            reading.cancel()
            self._sessions.lose(session, stream)
        if reading.done() and not reading.cancelled() and (why := reading.result()) is not None:
            await rpc_errors.abort(context, why)
        if not self._sessions.closed:
            await context.abort(grpc.StatusCode.ABORTED, "attached anew, or the stream was not read")

    async def _read_hello(self, messages: _Messages) -> str:
        """Who the router is. Raises InvalidRequest, or NodeUnavailable where it means an earlier incarnation."""
        try:
            async with asyncio.timeout(_FIRST_MESSAGE_S):
                hello = await anext(messages, None)
        except TimeoutError:
            hello = None
        if hello is None or not hello.router_id or hello.sequence:
            raise InvalidRequest("a stream begins with the router's id")
        self._check_epoch(hello)
        return hello.router_id

    async def _read(self, session: Session, stream: object, messages: _Messages) -> BatonError | None:
        """Do what the router says. Why it cannot go on is returned; whichever way it ends, so does the stream."""
        try:
            async for batch in messages:
                if session.stream is not stream:
                    break
                self._check_epoch(batch)
                if self._is_next(batch, session.num_heard):
                    session.num_heard += 1
                    self._take(session, batch)
        except BatonError as error:
            return error
        except Exception:  # an edge: this router attaches anew, the node goes on
            _log.exception("cannot read the stream of router %s", session.router_id)
            return BatonError("internal error")
        finally:
            self._sessions.lose(session, stream)
            session.wake.set()
        return None

    def _check_epoch(self, batch: node_pb2.RouterBatch) -> None:
        if batch.epoch != self._sessions.epoch:
            raise NodeUnavailable("another incarnation of this node is meant")

    def _is_next(self, batch: node_pb2.RouterBatch, expected: int) -> bool:
        """False for a message that comes a second time."""
        if batch.sequence > expected:
            raise NodeUnavailable("a message is missing")
        return batch.sequence == expected

    def _take(self, session: Session, batch: node_pb2.RouterBatch) -> None:
        if len(batch.cancelled_keys) != len(batch.cancelled_attempts):
            raise InvalidRequest("columns of different lengths")
        for key, attempt in zip(batch.cancelled_keys, batch.cancelled_attempts, strict=True):
            session.cancel(key, attempt)
        for start in batch.starts:
            try:
                generation = Generation.from_proto(start.generation, session.router_id)
            except InvalidRequest as error:
                session.add_failed(start.generation.key, start.generation.attempt, error)
            else:
                self._legs.begin(generation, start.prefill_node_id, start.prefill_epoch)
        for granted in batch.grants:
            if (leg := session.leg(granted.key, granted.attempt)) is not None:
                self._legs.take_grant(leg, granted.grant)

    async def _send_batches(self, session: Session, stream: object, context: _Context) -> None:
        sequence = 0
        while True:
            await session.wake.wait()
            if session.stream is not stream:
                session.wake.set()  # it was meant for the newer stream, or for none
                return
            beat, closed = session.beat_due, self._sessions.closed
            batch = session.take()
            if beat:
                batch.load.CopyFrom(self._sessions.load())
                batch.num_heard = session.num_heard
            batch.epoch, batch.sequence = self._sessions.epoch, sequence
            sequence += 1
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await context.write(batch)
            if closed:
                return
