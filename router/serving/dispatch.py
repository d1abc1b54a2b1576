"""The life of a request in the router, from `submit` to the last call on its sink.

    1. placed      (`placer`) hash the prompt, look up who holds which prefix, choose the nodes.
    2. attempted   (`failover`, `attempt`) both legs run; tokens go to the sink as they come. What is wanted of the
                   prompt itself (`prompt_attempt`) comes before, from one node alone.
    3. paused      the client reads too slowly: both nodes forget the request, until the client has caught up.
       replayed    a node was lost, or a transfer failed: place it again, as prompt plus the tokens sent so far, under
                   the next attempt number. Four failures in a row, none of which got on, end the request; a node that
                   merely refuses is no failure.
    4. ended       finished, failed, cancelled, or out of time. Both nodes forget it.

Steps 1 to 3 are one task per request, asleep while tokens flow. The router owns what a stream is made of: prompt,
parameters, seed, tokens sent. Which text comes of it is the HTTP side's business, which node lives the links'.
"""

import asyncio
import itertools
import logging
import os
import socket
import time
import uuid
from functools import partial

from prometheus_client import Gauge

from baton.errors import BatonError, DeadlineExceeded, NoCapacity, Overloaded
from baton.net import redis_client
from baton.net.redis_client import REDIS_ERRORS, TIMEOUT_S
from baton.net.registry import NodeRecord, Registration, list_nodes, mint_epoch
from baton.net.tls import Identity
from baton.process import tasks
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
_NODES = Gauge("baton_router_nodes", "Nodes as this router sees them", ["pool", "state"])
_WAITING = Gauge("baton_router_requests_waiting", "Requests that no node has been chosen for yet")
_WAITING_TOKENS = Gauge("baton_router_waiting_prompt_tokens", "Prompt tokens of those")


class Dispatcher:
    """The control side of a router: takes jobs, and sees each to the last call on its sink."""

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
        """`endpoint` is the router's own HTTP host:port, for the registry."""
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
        """Whether a node of each pool is there."""
        return self._fleet.ready

    @property
    def facts(self) -> FleetFacts | None:
        """What the fleet serves; None until the first node has been found."""
        return self._fleet.facts

    @property
    def num_in_flight(self) -> int:
        """Requests submitted and not ended."""
        return len(self._in_flight)

    @property
    def num_routers(self) -> int:
        """Routers of the fleet that live, as far as is known."""
        return self._fleet.num_routers

    @property
    def expects_prefill(self) -> bool:
        """Whether the fleet has a prefill pool."""
        return self._fleet.expects_prefill

    @property
    def links(self) -> list[NodeLink]:
        """Links to every node that this router knows, those out of reach included."""
        return self._fleet.links

    def waiting(self) -> list[Running]:
        """Requests that no node has been chosen for yet."""
        return [running for running in self._in_flight.values() if running.is_waiting]

    async def services(self) -> list[NodeRecord] | None:
        """What the registry lists; None where Redis does not answer."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await list_nodes(self._redis)
        except REDIS_ERRORS:
            return None

    @property
    def num_index_blocks(self) -> int:
        """Blocks that the copy of the prefix index holds."""
        return self._replica.num_blocks

    async def start(self) -> None:
        """Register, find the nodes, follow the prefix index. Waits for none of them."""
        await self._registration.start()
        await self._replica.start()
        await self._fleet.start()

    def leave(self) -> None:
        """Tell the registry that this router drains. What it has in flight goes on."""
        self._registration.update(state="draining")

    async def stop(self) -> None:
        """Cancel what is in flight and let go of everything. Idempotent."""
        in_flight = [running.task for running in self._in_flight.values() if running.task is not None]
        await asyncio.gather(*(tasks.end(task) for task in in_flight))
        await self._fleet.stop()
        await self._replica.stop()
        await self._registration.stop()
        await self._redis.aclose()
        await self._stream_redis.aclose()

    def submit(self, job: Job, sink: Sink) -> Running:
        """Take a request on; raises Overloaded where too many are in flight."""
        if len(self._in_flight) >= self._limits.max_in_flight:
            raise Overloaded("too many requests at present")
        running = Running(job, sink, next(self._keys))
        self.timelines.add(running.timeline)
        self._in_flight[running.key] = running
        loop = asyncio.get_running_loop()
        running.task = loop.create_task(self._serve(running))
        running.timer = loop.call_later(job.deadline_s - time.monotonic(), running.expire)
        running.task.add_done_callback(lambda _: self._forget(running))
        return running

    def _expose(self) -> None:
        _IN_FLIGHT.set_function(lambda: self.num_in_flight)
        _WAITING.set_function(lambda: len(self.waiting()))
        _WAITING_TOKENS.set_function(lambda: sum(running.num_tokens for running in self.waiting()))
        for role, state in itertools.product(("prefill", "decode"), STATES):
            _NODES.labels(role, state).set_function(partial(self._count, role, state))

    def _count(self, role: str, state: str) -> int:
        return sum(link.record.role == role and link.health == state for link in self.links)

    def _forget(self, running: Running) -> None:
        running.timeline.end()
        running.task = None  # what a cancelled one was doing holds on to `running`
        if running.timer is not None:
            running.timer.cancel()
        del self._in_flight[running.key]

    async def _serve(self, running: Running) -> None:
        try:
            running.finish(await self._failover.run(running))
        except BatonError as error:
            running.fail(error)
        except asyncio.CancelledError:
            if running.is_late:
                running.fail(self._timeout_error(running))
                return
            running.fail(NoCapacity("the router is stopping"))  # nobody hears it where the client cancelled
            raise
        except Exception:  # an edge: this request fails, the router goes on
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
    """This router's entry in the registry."""
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
