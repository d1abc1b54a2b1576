"""Nodes that write the prefix index, and routers' copies of it, on one Redis."""

import asyncio
import time
from typing import Any, Self

from redis.asyncio import Redis

from baton.kv import prefix_index
from baton.kv.index_writer import IndexWriter
from baton.kv.prefix_hash import BlockHash, block_hashes, root_hash
from baton.net import redis_client
from router.placing.prefix_replica import PrefixReplica

MODEL = "cafe"
CHAIN = block_hashes(range(512), 1, root_hash(MODEL))


class Node:
    """A node's cache and its writer."""

    def __init__(self, redis: Redis, node_id: str, epoch: int = 1, num_blocks: int = 0) -> None:
        self.blocks: set[BlockHash] = set(CHAIN[:num_blocks])
        self.num_snapshots = 0
        self.writer = IndexWriter(redis, MODEL, node_id, epoch, self._snapshot)

    def put(self, stored: list[BlockHash], evicted: list[BlockHash]) -> None:
        self.blocks.difference_update(evicted)
        self.blocks.update(stored)
        self.writer.put(stored, evicted)

    async def _snapshot(self) -> set[BlockHash]:
        self.num_snapshots += 1
        return set(self.blocks)


class Clients:
    def __init__(self, url: str) -> None:
        self.fast = redis_client.connect(url)
        self.patient = redis_client.connect(url, timeout_s=2.0)
        self.stoppables: list[Any] = []

    async def node(self, *args: Any, **kwargs: Any) -> Node:
        node = Node(self.patient, *args, **kwargs)
        await self._start(node.writer)
        return node

    async def replica(self, **kwargs: Any) -> PrefixReplica:
        replica = PrefixReplica(self.fast, self.patient, **kwargs)
        await self._start(replica)
        return replica

    async def _start(self, stoppable: Any) -> None:
        await stoppable.start()
        self.stoppables.append(stoppable)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for stoppable in self.stoppables:
            await stoppable.stop()
        await self.fast.aclose()
        await self.patient.aclose()


async def found_by_script(clients: Clients, nodes: dict[str, int], expected: dict[str, int]) -> None:
    deadline = time.monotonic() + 10
    while (found := await prefix_index.lookup(clients.patient, MODEL, nodes, CHAIN)) != expected:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.005)
