"""Trace.Find: this node's timelines of given requests."""

from typing import Any

from grpc import aio

from baton.telemetry.timeline import MAX_PARTS, TimelineBook
from baton.v1 import trace_pb2, trace_pb2_grpc


class TraceService(trace_pb2_grpc.TraceServicer):
    """The servicer. The prefill or decode node adds the timelines to `book`."""

    def __init__(self, node_id: str, book: TimelineBook) -> None:
        self._node_id, self._book = node_id, book

    async def Find(  # noqa: N802
        self, request: trace_pb2.TraceRequest, context: aio.ServicerContext[Any, Any]
    ) -> trace_pb2.TraceReply:
        """Return all attempts at these requests that the book still holds."""
        timelines = [
            timeline for request_id in request.request_ids[:MAX_PARTS] for timeline in self._book.find(request_id)
        ]
        return trace_pb2.TraceReply(timelines=[timeline.to_proto(self._node_id) for timeline in timelines])
