"""The global prefix index: which node holds which KV blocks. Written by nodes, read by routers, kept in Redis.

Schema, per model fingerprint:
  `baton:prefix:<fp>:<node>:<epoch>`      set of the block hashes of one incarnation, and "" so that it is never empty
  `baton:prefix:<fp>:<node>:<epoch>:seq`  number of that incarnation's last event
  `baton:prefix:<fp>:events`              stream {node, epoch, seq, reset, stored, evicted}, hashes packed

Sets belong to an incarnation and expire with its lease, so nothing of a dead one is ever found, and nothing is swept.
A prefix is found by bisecting, which assumes that who holds block i holds blocks 0 to i: nodes evict leaf first. The
index is a hint. Nodes verify every hit, so a lost or late write costs a recomputed prefix and no more.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

from baton.kv.prefix_hash import HASH_BYTES, BlockHash
from baton.net.redis_client import FAILURES, REDIS_ERRORS
from baton.process import tasks

LEASE_S = 10.0
RENEWAL_S = 1.0
MAX_PENDING_BLOCKS = 65_536  # changes waiting for Redis; beyond that a new snapshot is cheaper
MAX_FLUSH_BLOCKS = 2048  # changes in one script, about a millisecond of Redis
MAX_EVENTS = 1024  # in the stream: 32 MiB at most

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
_LOOKUP = """
local packed, counts = ARGV[1], {}
local function has(key, block)
  return redis.call('SISMEMBER', key, string.sub(packed, block * 16 - 15, block * 16)) == 1
end
for i, key in ipairs(KEYS) do
  local low, high = 0, #packed / 16
  if not has(key, 1) then high = 0 end
  while low < high do
    local middle = math.ceil((low + high) / 2)
    if has(key, middle) then low = middle else high = middle - 1 end
  end
  counts[i] = low
end
return counts
"""


class Event(msgspec.Struct, frozen=True):
    """One change of one node's blocks."""

    node_id: str
    epoch: int
    seq: int  # counts up by one, save at a reset, where it jumps ahead
    reset: bool  # everything said before of this incarnation is void
    stored: list[BlockHash]
    evicted: list[BlockHash]


class IndexWriter:
    """Announces one node's cached blocks. All methods belong to the node's event loop; none waits for Redis."""

    def __init__(
        self,
        redis: Redis,
        model_fingerprint: str,
        node_id: str,
        epoch: int,
        snapshot: Callable[[], Awaitable[Iterable[BlockHash]]],
    ) -> None:
        """`snapshot` returns all cached blocks, those of every `put` so far included."""
        self._redis = redis
        self._script = redis.register_script(_FLUSH)
        self._node = (node_id, epoch)
        self._keys = [*_node_keys(model_fingerprint, node_id, epoch), _events_key(model_fingerprint)]
        self._snapshot = snapshot
        self._pending: dict[BlockHash, bool] = {}  # whether the block is cached now
        self._dirty = asyncio.Event()
        self._reset = True
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Announce a snapshot, and changes from now on."""
        self._dirty.set()
        self._task = asyncio.create_task(self._run(), name="prefix index writer")

    async def stop(self) -> None:
        """Take this node's blocks out of the index. Idempotent."""
        if self._task is None:
            return
        task, self._task = self._task, None
        await tasks.end(task)
        try:
            await self._redis.unlink(*self._keys[:2])
        except REDIS_ERRORS:
            FAILURES.labels("prefix_index").inc()

    def put(self, stored: Iterable[BlockHash], evicted: Iterable[BlockHash]) -> None:
        """Blocks that a step evicted, and then those that it stored."""
        self._pending.update(dict.fromkeys(evicted, False))
        self._pending.update(dict.fromkeys(stored, True))
        if len(self._pending) > MAX_PENDING_BLOCKS:
            self._pending.clear()
            self._reset = True
        if self._pending or self._reset:
            self._dirty.set()

    async def _run(self) -> None:
        while self._task is not None:  # before Python 3.12 redis-py may swallow a cancel
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEWAL_S):  # wait_for loses a cancel that meets the event (before 3.12)
                    await self._dirty.wait()
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
            blocks = await self._snapshot()
            self._pending = {}  # all of it is in the snapshot
            changes = [(block, True) for block in blocks]
        else:
            changes, self._pending = list(self._pending.items()), {}
        for start in range(0, len(changes) or 1, MAX_FLUSH_BLOCKS):
            opening = reset and start == 0
            try:
                known = await self._send(changes[start : start + MAX_FLUSH_BLOCKS], opening)
            except REDIS_ERRORS:
                self._pending = dict(changes[start:]) | self._pending
                self._reset = self._reset or opening
                raise
            if not known:  # Redis was emptied: everything has to be told again
                self._reset = True
                self._dirty.set()
                return

    async def _send(self, changes: Sequence[tuple[BlockHash, bool]], reset: bool) -> bool:
        stored = b"".join(block for block, cached in changes if cached)
        evicted = b"".join(block for block, cached in changes if not cached)
        args: list[str | int | bytes] = [*self._node, int(LEASE_S * 1000), int(reset), stored, evicted, MAX_EVENTS]
        known: Any = await self._script(keys=self._keys, args=args)
        return bool(known)


async def lookup(
    redis: Redis, model_fingerprint: str, nodes: Mapping[str, int], hashes: Sequence[BlockHash]
) -> dict[str, int]:
    """How many leading blocks of `hashes` (not empty) each node holds; `nodes` maps id to epoch. One round trip."""
    keys = [_node_keys(model_fingerprint, *node)[0] for node in nodes.items()]
    counts: Any = await redis.register_script(_LOOKUP)(keys=keys, args=[b"".join(hashes)])
    return dict(zip(nodes, counts, strict=True))


async def load(redis: Redis, model_fingerprint: str, node_id: str, epoch: int) -> tuple[int, set[BlockHash]]:
    """(seq, blocks) of one incarnation: events up to `seq` are in the blocks, those after it may be."""
    blocks_key, seq_key = _node_keys(model_fingerprint, node_id, epoch)
    seq = int(await redis.get(seq_key) or 0)
    blocks: set[BlockHash] = set()
    cursor: Any = None
    while cursor != 0:
        part: Any
        cursor, part = await redis.sscan(blocks_key, cursor or 0, count=MAX_FLUSH_BLOCKS)
        blocks.update(part)
    blocks.discard(BlockHash(b""))
    return seq, blocks


async def last_event_id(redis: Redis, model_fingerprint: str) -> bytes:
    """The id after which events are still to come."""
    newest: Any = await redis.xrevrange(_events_key(model_fingerprint), count=1)
    return bytes(newest[0][0]) if newest else b"0-0"


async def read_events(redis: Redis, model_fingerprint: str, after: bytes, wait_s: float) -> tuple[bytes, list[Event]]:
    """(id of the last one, events after `after`), waiting up to `wait_s` for the first.

    The client's timeout has to be longer than that.
    """
    key = _events_key(model_fingerprint)
    streams: Any = await redis.xread({key: after}, count=64, block=int(wait_s * 1000))
    entries = streams[0][1] if streams else []
    return (entries[-1][0] if entries else after), [_event(fields) for _, fields in entries]


def _event(fields: dict[bytes, bytes]) -> Event:
    return Event(
        node_id=fields[b"node"].decode(),
        epoch=int(fields[b"epoch"]),
        seq=int(fields[b"seq"]),
        reset=fields[b"reset"] == b"1",
        stored=_unpack(fields[b"stored"]),
        evicted=_unpack(fields[b"evicted"]),
    )


def _unpack(packed: bytes) -> list[BlockHash]:
    return [BlockHash(packed[at : at + HASH_BYTES]) for at in range(0, len(packed), HASH_BYTES)]


def _node_keys(model_fingerprint: str, node_id: str, epoch: int) -> tuple[str, str]:
    blocks = f"baton:prefix:{model_fingerprint}:{node_id}:{epoch}"
    return blocks, f"{blocks}:seq"


def _events_key(model_fingerprint: str) -> str:
    return f"baton:prefix:{model_fingerprint}:events"
