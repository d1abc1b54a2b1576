"""The global prefix index in Redis: which node holds which KV blocks. Nodes write it (`index_writer`), routers read it.

Schema, per model fingerprint:
  `baton:prefix:<fp>:<node>:<epoch>`      set of the block hashes of one incarnation, and "" so that it is never empty
  `baton:prefix:<fp>:<node>:<epoch>:seq`  number of that incarnation's last event
  `baton:prefix:<fp>:events`              stream {node, epoch, seq, reset, stored, evicted}, hashes packed

Sets belong to an incarnation and expire with its lease, so nothing of a dead one is ever found, and nothing is swept.
A prefix is found by bisecting, which assumes that who holds block i holds blocks 0 to i: nodes evict leaf first. The
index is a hint. Nodes verify every hit, so a lost or late write costs a recomputed prefix and no more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

from baton.kv.prefix_hash import HASH_BYTES, BlockHash

MAX_SCRIPT_BLOCKS = 2048  # in one call of Redis, about a millisecond of it

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


async def lookup(
    redis: Redis, model_fingerprint: str, nodes: Mapping[str, int], hashes: Sequence[BlockHash]
) -> dict[str, int]:
    """How many leading blocks of `hashes` (not empty) each node holds; `nodes` maps id to epoch. One round trip."""
    keys = [node_keys(model_fingerprint, *node)[0] for node in nodes.items()]
    counts: Any = await redis.register_script(_LOOKUP)(keys=keys, args=[b"".join(hashes)])
    return dict(zip(nodes, counts, strict=True))


async def load(redis: Redis, model_fingerprint: str, node_id: str, epoch: int) -> tuple[int, set[BlockHash]]:
    """(seq, blocks) of one incarnation: events up to `seq` are in the blocks, those after it may be."""
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
    """The id after which events are still to come."""
    newest: Any = await redis.xrevrange(events_key(model_fingerprint), count=1)
    return bytes(newest[0][0]) if newest else b"0-0"


async def read_events(redis: Redis, model_fingerprint: str, after: bytes, wait_s: float) -> tuple[bytes, list[Event]]:
    """(id of the last one, events after `after`), waiting up to `wait_s` for the first.

    The client's timeout has to be longer than that.
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
    """Of an incarnation's blocks, and of the number of its last event."""
    blocks = f"baton:prefix:{model_fingerprint}:{node_id}:{epoch}"
    return blocks, f"{blocks}:seq"


def events_key(model_fingerprint: str) -> str:
    """Of the stream of all nodes' events."""
    return f"baton:prefix:{model_fingerprint}:events"
