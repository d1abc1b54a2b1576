"""The life of a request in the router, from `submit` to the last call on its sink.

    1. placed      (`placer`) hash the prompt, look up which node holds which prefix, choose the nodes.
    2. attempted   (`failover`, `attempt`) both legs run; tokens go to the sink as they come. Work on the prompt itself
                   (`prompt_attempt`) is done before, on a single node.
    3. paused      the client reads too slowly: the request is taken off its nodes until the client has caught up.
       replayed    a node was lost or a transfer failed: place the request again, as prompt plus the tokens sent so far,
                   under the next attempt number. It fails after four such failures in a row without progress. A refusal
                   by a node is not a failure.
    4. ended       finished, failed, cancelled, or past its deadline. Its nodes drop it.

Steps 1 to 3 are one task per request, which sleeps while tokens flow. The router owns the state of a stream: prompt,
parameters, seed, tokens sent. The HTTP side turns tokens into text; the links know which node is alive.
"""

import asyncio
import itertools
import logging
import os
import socket
import uuid
from functools import partial

from prometheus_client import Gauge

from baton.errors import BatonError, DeadlineExceeded, NoCapacity, Overloaded
from baton.net import redis_client
from baton.net.redis_client import REDIS_ERRORS, TIMEOUT_S
from baton.net.registry import NodeRecord, Registration, list_nodes, mint_epoch
from baton.net.tls import Identity
from baton.telemetry.timeline import TimelineBook
from router.job import Job, Sink
from router.nodes.fleet_view import FleetFacts, FleetView
from router.nodes.link import STATES, NodeLink
from router.placing.admission import Limits
from router.placing.placer import Placer
from router.placing.prefix_replica import WAIT_S, PrefixReplica
from router.running import Running
from router.serving.failover import Failover

_log = logging.getLogger(__name__)
_LIMITS = Limits()

_IN_FLIGHT = Gauge("baton_router_requests_in_flight", "Requests between submission and their last token")
_NODES = Gauge("baton_router_nodes", "Nodes as seen by this router", ["pool", "state"])
_WAITING = Gauge("baton_router_requests_waiting", "Requests for which no node has been chosen yet")
_WAITING_TOKENS = Gauge("baton_router_waiting_prompt_tokens", "Tokens of requests without a chosen node")


class Dispatcher:
    """The control side of a router: takes jobs, and serves each up to the last call on its sink."""

    def __init__(
        self,
        redis_url: str,
        *,
        endpoint: str,
        router_id: str = "",
        service_token: str = "",
        tls: Identity | None = None,
        models: tuple[str, ...] = (),
        metrics_url: str = "",
        limits: Limits = _LIMITS,
        timelines: TimelineBook | None = None,
    ) -> None:
        """`endpoint` is the router's own HTTP address, host:port, for the registry."""
        self.router_id = router_id or f"router-{uuid.uuid4().hex[:12]}"
        self._limits = limits
        self._redis = redis_client.connect(redis_url)
        self._stream_redis = redis_client.connect(redis_url, WAIT_S + 20 * TIMEOUT_S)
        record = _record(self.router_id, endpoint, metrics_url, models)
        self._registration = Registration(self._redis, record)
        self._replica = PrefixReplica(self._redis, self._stream_redis)
        self._fleet = FleetView(self._redis, self.router_id, service_token, self._on_nodes, tls)
        self._keys = itertools.count(1)
        self._placer = Placer(self._fleet, self._replica, limits)
        self._failover = Failover(self.router_id, self._fleet, self._placer)
        self._in_flight: dict[int, Running] = {}
        self.timelines = timelines or TimelineBook()
        self._expose()

    @property
    def ready(self) -> bool:
        """Whether each pool that the fleet needs has a node."""
        return self._fleet.ready

    @property
    def facts(self) -> FleetFacts | None:
        """Facts about the served model; None until the first node has been found."""
        return self._fleet.facts

    @property
    def num_in_flight(self) -> int:
        """The number of requests submitted and not ended."""
        return len(self._in_flight)

    @property
    def num_routers(self) -> int:
        """The number of routers in the registry, including this one."""
        return self._fleet.num_routers

    @property
    def expects_prefill(self) -> bool:
        """Whether the fleet has a prefill pool."""
        return self._fleet.expects_prefill

    @property
    def links(self) -> list[NodeLink]:
        """Links to all nodes that this router knows, including unreachable ones."""
        return self._fleet.links

    def waiting(self) -> list[Running]:
        """Return the requests for which no node has been chosen yet."""
        return [running for running in self._in_flight.values() if running.is_waiting]

    async def services(self) -> list[NodeRecord] | None:
        """Return the records in the registry, or None if Redis does not answer."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await list_nodes(self._redis)
        except REDIS_ERRORS:
            return None

    @property
    def num_index_blocks(self) -> int:
        """The number of blocks in this router's replica of the prefix index."""
        return self._replica.num_blocks

    async def start(self) -> None:
        """Register, and start to watch the nodes and the prefix index. Does not wait for any node."""
        await self._registration.start()
        await self._replica.start()
        await self._fleet.start()

    def leave(self) -> None:
        """Mark this router as draining in the registry. Requests in flight continue."""
        self._registration.update(state="draining")

    async def stop(self) -> None:
        """Cancel requests in flight, and close all links and connections. Idempotent."""
        await asyncio.gather(*(running.stop() for running in self._in_flight.values()))
        await self._fleet.stop()
        await self._replica.stop()
        await self._registration.stop()
        await self._redis.aclose()
        await self._stream_redis.aclose()

    def submit(self, job: Job, sink: Sink) -> Running:
        """Start to serve a job, and return its handle. Raises Overloaded if too many requests are in flight."""
        if len(self._in_flight) >= self._limits.max_in_flight:
            raise Overloaded("too many requests at present")
        running = Running(job, sink, next(self._keys))
        self.timelines.add(running.timeline)
        self._in_flight[running.key] = running
        running.start(self._serve(running), on_end=lambda: self._in_flight.pop(running.key))
        return running

    def _expose(self) -> None:
        _IN_FLIGHT.set_function(lambda: self.num_in_flight)
        _WAITING.set_function(lambda: len(self.waiting()))
        _WAITING_TOKENS.set_function(lambda: sum(running.num_tokens for running in self.waiting()))
        for role, state in itertools.product(("prefill", "decode"), STATES):
            _NODES.labels(role, state).set_function(partial(self._count, role, state))

    def _count(self, role: str, state: str) -> int:
        return sum(link.record.role == role and link.health == state for link in self.links)

    async def _serve(self, running: Running) -> None:
        try:
            running.finish(await self._failover.run(running))
        except BatonError as error:
            running.fail(error)
        except asyncio.CancelledError:
            if running.is_late:
                running.fail(self._timeout_error(running))
                return
            running.fail(NoCapacity("the router is stopping"))  # no effect if the client cancelled
            raise
        except Exception:  # an edge: this request fails, the router keeps running
            _log.exception("a request failed", extra={"request_id": running.job.request_id})
            running.fail(BatonError("internal error"))

    def _timeout_error(self, running: Running) -> BatonError:
        if running.usage.num_attempts == 0 or not (self.ready or running.wants_prompt):
            return NoCapacity("no node could take the request before its deadline")
        return DeadlineExceeded("the request took longer than its deadline")

    def _on_nodes(self) -> None:
        if self.facts is not None:
            nodes = {link.record.node_id: link.record.epoch for link in self.links if link.alive}
            self._replica.follow(self.facts.model_fingerprint, nodes)
        self._placer.nodes_changed()


def _record(router_id: str, endpoint: str, metrics_url: str, models: tuple[str, ...]) -> NodeRecord:
    """Return this router's record for the registry."""
    return NodeRecord(
        node_id=router_id,
        role="router",
        epoch=mint_epoch(),
        state="ready",
        address=endpoint,
        metrics_url=metrics_url,
        pid=os.getpid(),
        host=socket.gethostname(),
        models=models,
    )
