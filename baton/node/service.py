"""Node.Attach: the stream between one router and this node. Orders come in; outputs, outcomes and the load go out.

A router has one stream per node. If it attaches again it starts afresh: the older stream ends, and whatever still
arrives on that is dropped. Messages are numbered in both directions. A duplicate is dropped; a gap ends the stream and
every request on it, since otherwise some request might wait for ever for what was lost. Heartbeats are sent by the
event loop, so they continue during a long step.
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
    """What a node does with requests. Both methods return at once and report the outcome through the sessions."""

    def begin(self, generation: Generation, prefill_node_id: str, prefill_epoch: int) -> None:
        """Start a leg, or refuse it."""

    def take_grant(self, leg: Leg, grant: transfer_pb2.Grant) -> None:
        """Give a leg the grant that says where it may send its KV blocks."""


class NodeService(node_pb2_grpc.NodeServicer):
    """The servicer. It shares `sessions` with the prefill or decode node's own code."""

    def __init__(self, sessions: Sessions, legs: Legs) -> None:
        self._sessions = sessions
        self._legs = legs

    async def Attach(  # type: ignore[override]  # noqa: N802
        self, request_iterator: _Messages, context: _Context
    ) -> None:
        """Serve one stream until the router leaves, attaches again, stops reading, or sends an invalid message."""
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
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the router does not read the stream")
        finally:
            reading.cancel()
            self._sessions.lose(session, stream)
        if reading.done() and not reading.cancelled() and (why := reading.result()) is not None:
            await rpc_errors.abort(context, why)
        if not self._sessions.closed:
            await context.abort(grpc.StatusCode.ABORTED, "the router attached again, or did not read the stream")

    async def _read_hello(self, messages: _Messages) -> str:
        """Return the router's id from its first message. Raises InvalidRequest, or NodeUnavailable (`_check_epoch`)."""
        try:
            async with asyncio.timeout(_FIRST_MESSAGE_S):
                hello = await anext(messages, None)
        except TimeoutError:
            hello = None
        if hello is None or not hello.router_id or hello.sequence:
            raise InvalidRequest("the first message of a stream must carry the router's id and sequence 0")
        self._check_epoch(hello)
        return hello.router_id

    async def _read(self, session: Session, stream: object, messages: _Messages) -> BatonError | None:
        """Execute the router's orders. Ends the stream, too, and returns the error that ended it, if there was one."""
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
        except Exception:  # an edge: this router attaches again, the node keeps running
            _log.exception("cannot read the stream of router %s", session.router_id)
            return BatonError("internal error")
        finally:
            self._sessions.lose(session, stream)
            session.wake.set()
        return None

    def _check_epoch(self, batch: node_pb2.RouterBatch) -> None:
        if batch.epoch != self._sessions.epoch:
            raise NodeUnavailable("the message is for another incarnation of this node")

    def _is_next(self, batch: node_pb2.RouterBatch, expected: int) -> bool:
        """Return False for a duplicate. Raises NodeUnavailable if a message is missing."""
        if batch.sequence > expected:
            raise NodeUnavailable(f"message {expected} of the stream is missing")
        return batch.sequence == expected

    def _take(self, session: Session, batch: node_pb2.RouterBatch) -> None:
        if len(batch.cancelled_keys) != len(batch.cancelled_attempts):
            raise InvalidRequest("cancelled_keys and cancelled_attempts differ in length")
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
                session.wake.set()  # pass the wake-up on to the newer stream, if there is one
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
