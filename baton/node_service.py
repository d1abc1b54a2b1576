"""Node.Attach: the stream on which a node tells a router tokens, ends of requests, and its load.

One stream per router. A router that attaches again takes its session over, requests and unread tokens included; the
older stream ends. Heartbeats come from the event loop, so they go on while a long step runs.
"""

import asyncio
from typing import Any

import grpc
from grpc import aio

from baton import rpc_errors
from baton.errors import BatonError
from baton.sessions import Session, Sessions
from baton.v1 import node_pb2, node_pb2_grpc

_WRITE_TIMEOUT_S = 5.0


class NodeService(node_pb2_grpc.NodeServicer):
    """The servicer; `sessions` is shared with the node's own service."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def Attach(  # type: ignore[override]  # noqa: N802
        self, request: node_pb2.AttachRequest, context: aio.ServicerContext[Any, Any]
    ) -> None:
        """Send step batches until the router goes, attaches anew, or stops reading."""
        try:
            session, stream = self._sessions.attach(request.router_id)
        except BatonError as error:
            await rpc_errors.abort(context, error)
        try:
            await self._send_batches(session, stream, context)
        except TimeoutError:
            self._sessions.detach(session)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the stream is not read")
        finally:
            self._sessions.lose(session, stream)
        if not self._sessions.closed:
            await context.abort(grpc.StatusCode.ABORTED, "attached anew, or the stream was not read")

    async def _send_batches(self, session: Session, stream: object, context: aio.ServicerContext[Any, Any]) -> None:
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
            batch.epoch, batch.sequence = self._sessions.epoch, sequence
            sequence += 1
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await context.write(batch)
            if closed:
                return
