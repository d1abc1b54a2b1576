"""The nodes that this router can use. They are found in the registry; whether they are alive, their streams show.

Redis is used only to find new nodes. A link is removed only if the registry no longer lists that incarnation *and* its
stream is dead, so losing or emptying Redis removes no node.
"""

import asyncio
import logging
from collections.abc import Callable

import msgspec
from redis.asyncio import Redis

from baton.net.redis_client import FAILURES, REDIS_ERRORS
from baton.net.registry import NodeRecord, list_nodes
from baton.net.tls import Identity
from baton.process import tasks
from router.nodes.cut_pairs import CutPairs
from router.nodes.fleet_costs import FleetCosts
from router.nodes.link import NodeLink

POLL_S = 0.5

_log = logging.getLogger(__name__)


class FleetFacts(msgspec.Struct, frozen=True):
    """What all nodes of the served model have in common."""

    model_fingerprint: str
    block_size: int  # tokens
    max_model_len: int  # tokens
    stretches_after: int = 0  # beyond so many tokens RoPE is stretched, and blocks have other hashes; 0: never


class FleetView:
    """Keeps a link to every node. Only nodes of the served model get requests."""

    def __init__(
        self,
        redis: Redis,
        router_id: str,
        service_token: str,
        on_nodes: Callable[[], None],
        tls: Identity | None,
    ) -> None:
        """`on_nodes` is called when nodes have come or gone, or their load or state has changed."""
        self.facts: FleetFacts | None = None
        self.costs = FleetCosts()
        self.cut_pairs = CutPairs()
        self.num_routers = 1  # listed in the registry, including this one
        self._redis = redis
        self._router_id = router_id
        self._service_token, self._tls = service_token, tls
        self._on_nodes = on_nodes
        self._links: dict[tuple[str, int], NodeLink] = {}
        self._prefill_lost = False
        self._change = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def links(self) -> list[NodeLink]:
        """All links, including dead ones."""
        return list(self._links.values())

    @property
    def expects_prefill(self) -> bool:
        """Whether this fleet has a prefill pool, even if it is dead at present. Draining nodes leave on purpose."""
        if self._prefill_lost:
            return True
        return any(link.record.role == "prefill" and not link.draining for link in self._links.values())

    @property
    def ready(self) -> bool:
        """Whether all pools that this fleet needs are there. They count even while they are full."""
        return self._serves("decode") and (self._serves("prefill") or not self.expects_prefill)

    def accepting(self, role: str) -> list[NodeLink]:
        """Return the links of a pool that can take new requests for the served model now."""
        return [link for link in self._pool(role) if link.accepting]

    async def start(self) -> None:
        """List the nodes now, and then every POLL_S."""
        await self._poll()
        self._task = asyncio.create_task(self._keep_polling(), name="fleet view")

    async def stop(self) -> None:
        """Stop listing, and close all links. Idempotent."""
        if self._task is not None:
            await tasks.end(self._task)
        links, self._links = self.links, {}
        await asyncio.gather(*(link.close() for link in links))

    async def changed(self, timeout_s: float) -> None:
        """Wait until a node has come or gone, or has reported its load, or time is up."""
        await tasks.wait(self._change, timeout_s)

    async def _keep_polling(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            await self._poll()

    async def _poll(self) -> None:
        try:
            records = await list_nodes(self._redis)
        except REDIS_ERRORS:
            FAILURES.labels("fleet_view").inc()
            return
        self.num_routers = max(sum(record.role == "router" for record in records), 1)
        await self._reconcile({(record.node_id, record.epoch): record for record in records if record.role != "router"})

    async def _reconcile(self, listed: dict[tuple[str, int], NodeRecord]) -> None:
        gone = [link for key, link in self._links.items() if key not in listed and not link.alive]
        for link in gone:
            del self._links[link.record.node_id, link.record.epoch]
            if link.record.role == "prefill":
                self._prefill_lost = not link.draining
        for key, record in listed.items():
            if key in self._links:
                continue
            about = record, self._router_id, self._service_token, self._on_change, self.costs
            link = NodeLink(*about, self._tls, self._may_suspect)
            self._links[key] = link
            link.open()
            if record.role == "prefill":
                self._prefill_lost = False
            _log.info("found %s node %s at %s", record.role, record.node_id, record.address)
        for link in gone:
            await link.close()

    def _serves(self, role: str) -> bool:
        return any(link.serves for link in self._pool(role))

    def _pool(self, role: str) -> list[NodeLink]:
        """Return the links to a pool's nodes of the served model."""
        served = self.facts and self.facts.model_fingerprint
        links = self._links.values()
        return [link for link in links if link.record.role == role and link.record.model_fingerprint == served]

    def _may_suspect(self, link: NodeLink) -> bool:
        """Whether a node's silence is its own. If most of its pool is silent, this host or the network is to blame."""
        pool = [other for other in self._links.values() if other.alive and other.record.role == link.record.role]
        return 2 * sum(other.speaks for other in pool if other is not link) >= len(pool)

    def _on_change(self) -> None:
        self._adopt_model()
        self._on_nodes()
        self._change.set()
        self._change = asyncio.Event()

    def _adopt_model(self) -> None:
        """Keep the served model as long as a live node has it; else adopt that of the node known for longest."""
        records = [link.record for link in self._links.values() if link.alive]
        if not records or (self.facts and any(r.model_fingerprint == self.facts.model_fingerprint for r in records)):
            return
        first = records[0]
        self.facts = FleetFacts(first.model_fingerprint, first.block_size, first.max_model_len, first.stretches_after)
