"""Traces: where a request's time went, from the timelines of this router and of the nodes that worked on it.

A node reports times relative to the request's arrival there. They are placed on the router's clock between the sending
of the request and the node's first reply, with the remaining time split evenly between the two directions. So no two
clocks are compared, and an event is off by half a round trip at most.
"""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

from grpc import aio

from baton.telemetry.timeline import Event, Timeline, from_proto
from baton.v1 import trace_pb2
from router.admin.peers import Peers
from router.nodes.link import NodeLink
from router.serving.dispatch import Dispatcher

_TIMEOUT_S = 1.0
_REPLIES = {"prefill": ("first token",), "decode": ("grant", "accepted")}  # the router's events for a first reply


class Traces:
    """Finds traces. Other routers are asked for requests that this one did not serve."""

    def __init__(self, dispatcher: Dispatcher, peers: Peers) -> None:
        self._dispatcher, self._peers = dispatcher, peers

    async def find(self, request_id: str, *, only_here: bool = False) -> dict[str, Any] | None:
        """Return the trace of a request, or None if no router has it any more. `only_here`: ask no other router."""
        known = self._dispatcher.timelines.find(request_id)
        if known:
            return await self._assemble(known[-1])
        if only_here:
            return None
        services = await self._dispatcher.services() or []
        return await self._peers.trace(self._peers.others(services), request_id)

    async def _assemble(self, whole: Timeline) -> dict[str, Any]:
        jobs = [job for part in whole.parts for job in self._dispatcher.timelines.find(part)]
        if not whole.parts and not whole.name:  # the given id is that of a job, by which nodes know it
            jobs = [whole]
        by_job, silent = await self._ask(jobs)
        rows = list(_rows(self._dispatcher.router_id, whole.events(), whole.began_s))
        for number, job in enumerate(jobs):
            part = {"choice": number} if len(jobs) > 1 else {}
            if job is not whole:
                rows += _rows(self._dispatcher.router_id, job.events(), whole.began_s, **part)
            for timeline in by_job.get(job.request_id, ()):
                rows += _rows(timeline.node_id, _aligned(job, timeline), whole.began_s, **part)
        ended_s = whole.ended_s or max((row["end_s"] + whole.began_s for row in rows), default=whole.began_s)
        return {
            "request_id": whole.request_id,
            "router_id": self._dispatcher.router_id,
            "name": whole.name,
            "complete": bool(whole.ended_s),
            "total_s": round(ended_s - whole.began_s, 6),
            "attributes": whole.attributes,
            "events": sorted(rows, key=lambda row: row["start_s"]),
            "silent_nodes": silent,
        }

    async def _ask(self, jobs: list[Timeline]) -> tuple[dict[str, list[trace_pb2.Timeline]], list[str]]:
        """Return the nodes' timelines by job, and the ids of nodes that served one but do not answer."""
        names = {name for job in jobs for name in _nodes(job)}
        links = {link.record.node_id: link for link in self._dispatcher.links if link.record.node_id in names}
        request = trace_pb2.TraceRequest(request_ids=[job.request_id for job in jobs])
        replies = await asyncio.gather(*(_find(link, request) for link in links.values()))
        found: dict[str, list[trace_pb2.Timeline]] = {}
        silent = sorted(names - links.keys())
        for name, reply in zip(links, replies, strict=True):
            if reply is None:
                silent.append(name)
                continue
            for timeline in reply.timelines:
                found.setdefault(timeline.request_id, []).append(timeline)
        return found, silent


async def _find(link: NodeLink, request: trace_pb2.TraceRequest) -> trace_pb2.TraceReply | None:
    try:
        return await link.trace.Find(request, timeout=_TIMEOUT_S, metadata=link.metadata)
    except aio.AioRpcError:
        return None


def _nodes(job: Timeline) -> Iterator[str]:
    for event in job.events():
        if event.name == "route":
            yield from (str(event.attributes[role]) for role in _REPLIES if role in event.attributes)


def _aligned(job: Timeline, timeline: trace_pb2.Timeline) -> Iterator[Event]:
    """Yield a node's events on this router's clock."""
    events = [event for event in job.events() if event.attributes.get("attempt") == timeline.attempt]
    route = next((event for event in events if event.name == "route"), None)
    sent_s = job.began_s if route is None else route.end_s
    is_prefill = route is not None and route.attributes.get("prefill") == timeline.node_id
    marks = _REPLIES["prefill" if is_prefill else "decode"]
    heard_s = next((event.start_s for event in events if event.name in marks), sent_s)
    away_s = heard_s - sent_s - timeline.replied_s if timeline.replied_s else 0.0
    for event in timeline.events:
        yield from_proto(event, sent_s + max(0.0, away_s / 2))


def _rows(where: str, events: Iterable[Event], origin_s: float, **more: Any) -> Iterator[dict[str, Any]]:
    for event in events:
        yield {
            "where": where,
            "name": event.name,
            "start_s": round(event.start_s - origin_s, 6),
            "end_s": round(event.end_s - origin_s, 6),
            "attributes": {**event.attributes, **more},
        }
