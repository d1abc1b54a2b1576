"""This router's replica of the prefix index, kept up to date by the event stream: a lookup is a few set probes.

Blocks of nodes that are not loaded yet are looked up in Redis, with a timeout of 50 ms and a pause after a failure. A
replica that Redis has not confirmed for STALE_S is not used either. Without both there are no hits, and placement goes
by load alone.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from redis.asyncio import Redis

from baton.kv import prefix_index
from baton.kv.prefix_hash import BlockHash
from baton.kv.prefix_index import Event
from baton.net.redis_client import FAILURES, REDIS_ERRORS, TIMEOUT_S, Breaker
from baton.process import tasks
from router.placing.expected_blocks import ExpectedBlocks, num_leading_of

WAIT_S = 0.5  # how long a read of the stream blocks; its client needs a longer timeout
STALE_S = 30.0
RETRY_S = 0.5

_log = logging.getLogger(__name__)


class _Holder:
    """The blocks of one incarnation of a node."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.seq = 0
        self.blocks: set[BlockHash] = set()
        self.loaded = False
        self.expected = ExpectedBlocks()


class PrefixReplica:
    """The replica. Beyond `max_blocks`, new blocks are left out, so that the prefixes already there stay complete."""

    def __init__(
        self,
        redis: Redis,
        stream_redis: Redis,
        max_blocks: int = 500_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`stream_redis` is a client whose timeout is longer than WAIT_S."""
        self._redis = redis
        self._stream_redis = stream_redis
        self._max_blocks = max_blocks
        self._clock = clock
        self._breaker = Breaker()
        self._fingerprint = ""
        self._holders: dict[str, _Holder] = {}
        self._confirmed_at = float("-inf")
        self._has_nodes = asyncio.Event()  # set once `follow` has named some
        self._task: asyncio.Task[None] | None = None

    @property
    def num_blocks(self) -> int:
        """The number of blocks in the replica, counted once per node that has them."""
        return sum(len(holder.blocks) for holder in self._holders.values())

    async def start(self) -> None:
        """Start to follow the stream, as soon as `follow` has named a model and nodes."""
        self._task = asyncio.create_task(self._run(), name="prefix replica")

    async def stop(self) -> None:
        """Stop following. Idempotent."""
        if self._task is None:
            return
        task, self._task = self._task, None
        await tasks.end(task)

    def follow(self, model_fingerprint: str, nodes: Mapping[str, int]) -> None:
        """Follow exactly these nodes (id to epoch) of this model from now on."""
        if model_fingerprint != self._fingerprint:
            self._fingerprint, self._holders = model_fingerprint, {}
        for node_id in self._holders.keys() - nodes.keys():
            del self._holders[node_id]
        for node_id, epoch in nodes.items():
            holder = self._holders.get(node_id)
            if holder is None or holder.epoch != epoch:
                self._holders[node_id] = _Holder(epoch)
                self._has_nodes.set()

    async def lookup(self, hashes: Sequence[BlockHash]) -> dict[str, int]:
        """Return how many leading blocks of `hashes` each followed node has or is expected to have. Never raises."""
        if not hashes:
            return {}
        now_s = self._clock()
        fresh = now_s - self._confirmed_at < STALE_S
        found: dict[str, int] = {}
        unknown: dict[str, int] = {}
        for node_id, holder in self._holders.items():
            if fresh and holder.loaded:
                num_held = num_leading_of(hashes, holder.blocks)
                found[node_id] = holder.expected.extend(hashes, num_held, now_s)
            else:
                unknown[node_id] = holder.epoch
        if unknown and self._breaker.closed:
            found.update(await self._ask(unknown, hashes))
        return found

    def expect(self, node_id: str, hashes: Sequence[BlockHash]) -> None:
        """Note that a node has been sent a prompt with these blocks, and so will have them soon."""
        if holder := self._holders.get(node_id):
            holder.expected.add(hashes, self._clock())

    async def _ask(self, nodes: Mapping[str, int], hashes: Sequence[BlockHash]) -> dict[str, int]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                found = await prefix_index.lookup(self._redis, self._fingerprint, nodes, hashes)
        except REDIS_ERRORS:
            FAILURES.labels("prefix_lookup").inc()
            self._breaker.failed()
            return {}
        self._breaker.succeeded()
        return found

    async def _run(self) -> None:
        while True:
            await self._has_nodes.wait()
            try:
                await self._follow_stream()
            except (*REDIS_ERRORS, KeyError, ValueError) as error:  # the last two: written by another version of Baton
                FAILURES.labels("prefix_replica").inc()
                _log.debug("prefix replica lost its stream: %s", type(error).__name__)
                await asyncio.sleep(RETRY_S)

    async def _follow_stream(self) -> None:
        """Load everything, then apply events until the model changes or Redis fails."""
        fingerprint = self._fingerprint
        after = await prefix_index.last_event_id(self._redis, fingerprint)
        pending = set(self._holders.values())
        while fingerprint == self._fingerprint:
            pending.update(holder for holder in self._holders.values() if not holder.loaded)
            for node_id, holder in list(self._holders.items()):
                if holder in pending:
                    await self._load(fingerprint, node_id, holder)
            pending.clear()
            self._confirmed_at = self._clock()
            after, events = await prefix_index.read_events(self._stream_redis, fingerprint, after, WAIT_S)
            for event in events:
                self._apply(event)

    async def _load(self, fingerprint: str, node_id: str, holder: _Holder) -> None:
        holder.seq, blocks = await prefix_index.load(self._redis, fingerprint, node_id, holder.epoch)
        holder.blocks = set()
        self._store(holder, list(blocks))
        holder.loaded = True

    def _apply(self, event: Event) -> None:
        holder = self._holders.get(event.node_id)
        if holder is None or holder.epoch != event.epoch or event.seq <= holder.seq:
            return
        if event.reset:
            holder.blocks = set()
        elif event.seq != holder.seq + 1:
            holder.loaded = False  # events are missing: the stream was trimmed before this router read it
            return
        holder.seq = event.seq
        holder.blocks.difference_update(event.evicted)
        self._store(holder, event.stored)

    def _store(self, holder: _Holder, blocks: list[BlockHash]) -> None:
        room = self._max_blocks - self.num_blocks
        holder.blocks.update(blocks if len(blocks) <= room else blocks[: max(room, 0)])
