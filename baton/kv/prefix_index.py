"""The global prefix index in Redis: which node holds which KV blocks. Nodes write it (`index_writer`), routers read it.

Schema, per model fingerprint:
  `baton:prefix:<fp>:<node>:<epoch>`      set of the block hashes of one incarnation, and "" so that it is never empty
  `baton:prefix:<fp>:<node>:<epoch>:seq`  number of that incarnation's last event
  `baton:prefix:<fp>:events`              stream {node, epoch, seq, reset, stored, evicted}, hashes packed

A set belongs to one incarnation and expires with its lease, so blocks of a dead one are never found and need no
clean-up. A lookup bisects the prefix. It relies on a node that holds block i also holding blocks 0 to i, since nodes
evict leaves first. The index is a hint: nodes verify every hit, so a lost or late write only costs a recomputed prefix.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

from baton.kv.prefix_hash import HASH_BYTES, BlockHash

MAX_SCRIPT_BLOCKS = 2048  # per call, which takes about a millisecond of Redis's time

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
    """One change of one node's cached blocks."""

    node_id: str
    epoch: int
    seq: int  # counts up by one, except at a reset, where it jumps ahead
    reset: bool  # earlier events of this incarnation are void
    stored: list[BlockHash]
    evicted: list[BlockHash]


async def lookup(
    redis: Redis, model_fingerprint: str, nodes: Mapping[str, int], hashes: Sequence[BlockHash]
) -> dict[str, int]:
    """Return how many leading blocks of `hashes` (not empty) each node holds. `nodes` maps node ids to epochs.

    Takes one round trip. Raises REDIS_ERRORS.
    """
    keys = [node_keys(model_fingerprint, *node)[0] for node in nodes.items()]
    counts: Any = await redis.register_script(_LOOKUP)(keys=keys, args=[b"".join(hashes)])
    return dict(zip(nodes, counts, strict=True))


async def load(redis: Redis, model_fingerprint: str, node_id: str, epoch: int) -> tuple[int, set[BlockHash]]:
    """Return (seq, blocks) of one incarnation. The blocks include all events up to `seq`, and perhaps later ones."""
    blocks_key, seq_key = node_keys(model_fingerprint, node_id, epoch)
    seq = int(await redis.get(seq_key) or 0)
    blocks: set[BlockHash] = set()
    cursor: Any = None
    while cursor != 0:
        part: Any
        cursor, part = await redis.sscan(blocks_key, cursor or 0, count=MAX_SCRIPT_BLOCKS)
        blocks.update(part)
    blocks.discard(BlockHash(b""))
    return seq, blocks


async def last_event_id(redis: Redis, model_fingerprint: str) -> bytes:
    """Return the id of the newest event in the stream."""
    newest: Any = await redis.xrevrange(events_key(model_fingerprint), count=1)
    return bytes(newest[0][0]) if newest else b"0-0"


async def read_events(redis: Redis, model_fingerprint: str, after: bytes, wait_s: float) -> tuple[bytes, list[Event]]:
    """Return (id of the last event, events after `after`), waiting up to `wait_s` for the first.

    The timeout of `redis` must be longer than that.
    """
    key = events_key(model_fingerprint)
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


def node_keys(model_fingerprint: str, node_id: str, epoch: int) -> tuple[str, str]:
    """Return the keys of an incarnation's blocks, and of the number of its last event."""
    blocks = f"baton:prefix:{model_fingerprint}:{node_id}:{epoch}"
    return blocks, f"{blocks}:seq"


def events_key(model_fingerprint: str) -> str:
    """Return the key of the stream of all nodes' events."""
    return f"baton:prefix:{model_fingerprint}:events"
