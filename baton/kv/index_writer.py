"""Keeps the prefix index (`prefix_index`) informed of a node's cached blocks, for as long as the node lives."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from redis.asyncio import Redis

from baton.kv.prefix_hash import BlockHash
from baton.kv.prefix_index import MAX_SCRIPT_BLOCKS, events_key, node_keys
from baton.net.redis_client import FAILURES, REDIS_ERRORS
from baton.process import tasks

LEASE_S = 10.0
RENEWAL_S = 1.0
MAX_PENDING_BLOCKS = 65_536  # changes waiting for Redis; for more, a new snapshot is cheaper
MAX_EVENTS = 1024  # length of the stream: 32 MiB at most

_log = logging.getLogger(__name__)

_FLUSH = """
local blocks, seq_key, events = KEYS[1], KEYS[2], KEYS[3]
local node, epoch, lease_ms, reset, stored, evicted = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local function each(command, packed)
  for start = 1, #packed, 16000 do
    local part = {}
    for at = start, math.min(start + 15999, #packed), 16 do part[#part + 1] = string.sub(packed, at, at + 15) end
    redis.call(command, blocks, unpack(part))
  end
end
if reset == '1' then
  local now = redis.call('TIME')
  redis.call('UNLINK', blocks)
  redis.call('SADD', blocks, '')
  redis.call('SET', seq_key, now[1] .. string.format('%06d', now[2]))
elseif redis.call('EXISTS', blocks, seq_key) < 2 then
  return 0
end
each('SADD', stored)
each('SREM', evicted)
if reset == '1' or #stored + #evicted > 0 then
  local seq = redis.call('INCR', seq_key)
  redis.call('XADD', events, 'MAXLEN', '~', ARGV[7], '*', 'node', node, 'epoch', epoch, 'seq', seq, 'reset', reset,
    'stored', stored, 'evicted', evicted)
  redis.call('PEXPIRE', events, 60 * lease_ms)
end
redis.call('PEXPIRE', blocks, lease_ms)
redis.call('PEXPIRE', seq_key, lease_ms)
return 1
"""


class IndexWriter:
    """Writes one node's cached blocks to the index. Call its methods in the node's event loop."""

    def __init__(
        self,
        redis: Redis,
        model_fingerprint: str,
        node_id: str,
        epoch: int,
        snapshot: Callable[[], Awaitable[Iterable[BlockHash]]],
    ) -> None:
        """`snapshot` returns all cached blocks, including those of every `put` so far."""
        self._redis = redis
        self._script = redis.register_script(_FLUSH)
        self._node = (node_id, epoch)
        self._keys = [*node_keys(model_fingerprint, node_id, epoch), events_key(model_fingerprint)]
        self._snapshot = snapshot
        self._pending: dict[BlockHash, bool] = {}  # whether the block is cached now
        self._dirty = asyncio.Event()
        self._reset = True
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Write a snapshot, and changes from now on, in a background task."""
        self._dirty.set()
        self._task = asyncio.create_task(self._run(), name="prefix index writer")

    async def stop(self) -> None:
        """Stop writing, and remove this node's blocks from the index. Idempotent."""
        if self._task is None:
            return
        task, self._task = self._task, None
        await tasks.end(task)
        try:
            await self._redis.unlink(*self._keys[:2])
        except REDIS_ERRORS:
            FAILURES.labels("prefix_index").inc()

    def put(self, stored: Iterable[BlockHash], evicted: Iterable[BlockHash]) -> None:
        """Queue the blocks that a step evicted, and then those that it stored. Returns at once."""
        self._pending.update(dict.fromkeys(evicted, False))
        self._pending.update(dict.fromkeys(stored, True))
        if len(self._pending) > MAX_PENDING_BLOCKS:
            self._pending.clear()
            self._reset = True
        if self._pending or self._reset:
            self._dirty.set()

    async def _run(self) -> None:
        while self._task is not None:  # before Python 3.12 redis-py may swallow a cancel
            await tasks.wait(self._dirty, RENEWAL_S)
            self._dirty.clear()
            try:
                await self._flush()
            except REDIS_ERRORS as error:
                FAILURES.labels("prefix_index").inc()
                _log.debug("prefix index not written: %s", type(error).__name__)
                await asyncio.sleep(RENEWAL_S)

    async def _flush(self) -> None:
        reset, self._reset = self._reset, False
        if reset:
            self._pending = {}  # the snapshot includes these; changes that arrive meanwhile may not be in it
            changes = [(block, True) for block in await self._snapshot()]
        else:
            changes, self._pending = list(self._pending.items()), {}
        for start in range(0, len(changes) or 1, MAX_SCRIPT_BLOCKS):
            opening = reset and start == 0
            try:
                known = await self._send(changes[start : start + MAX_SCRIPT_BLOCKS], opening)
            except REDIS_ERRORS:
                self._pending = dict(changes[start:]) | self._pending
                self._reset = self._reset or opening
                raise
            if not known:  # Redis was emptied: write a new snapshot
                self._reset = True
                self._dirty.set()
                return

    async def _send(self, changes: Sequence[tuple[BlockHash, bool]], reset: bool) -> bool:
        stored = b"".join(block for block, cached in changes if cached)
        evicted = b"".join(block for block, cached in changes if not cached)
        args: list[str | int | bytes] = [*self._node, int(LEASE_S * 1000), int(reset), stored, evicted, MAX_EVENTS]
        known: Any = await self._script(keys=self._keys, args=args)
        return bool(known)
