"""The registry: each service keeps its record in Redis under a lease; routers and operators list the records.

Schema: `baton:nodes` is the set of node ids; `baton:node:<id>` is a hash {epoch, record} that expires with the lease.
Each renewal writes everything, so a Redis that restarted empty is complete again a second later. If two processes claim
one id, the later epoch wins. Whether a node is alive is not decided here: routers know that from their streams.
"""

import asyncio
import contextlib
import logging
import time
from typing import Any, Literal, TypeAlias

import msgspec
from redis.asyncio import Redis

from baton.net.redis_client import FAILURES, REDIS_ERRORS
from baton.process import tasks

LEASE_S = 5.0
RENEWAL_S = 1.0
_LEASE_MS = int(LEASE_S * 1000)

Role: TypeAlias = Literal["prefill", "decode", "router"]
State: TypeAlias = Literal["starting", "ready", "draining"]

_log = logging.getLogger(__name__)

_NODES = "baton:nodes"
_RENEW = """
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch and tonumber(epoch) > tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'record', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('SADD', KEYS[2], ARGV[1])
return 1
"""
_DEREGISTER = """
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[2], ARGV[1])
return 1
"""
_LIST = """
local records = {}
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local record = redis.call('HGET', 'baton:node:' .. id, 'record')
  if record then records[#records + 1] = record else redis.call('SREM', KEYS[1], id) end
end
return records
"""


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The record of one service. Its load fields are as of the last renewal; routers get fresher ones in heartbeats."""

    node_id: str
    role: Role  # colocated nodes are "decode"
    epoch: int  # incarnation, from mint_epoch
    state: State = "starting"
    address: str  # host:port of its gRPC server or, for a router, of its HTTP server
    metrics_url: str = ""
    pid: int = 0
    host: str = ""
    models: tuple[str, ...] = ()
    model_fingerprint: str = ""
    block_size: int = 0  # tokens
    max_model_len: int = 0  # tokens
    stretches_after: int = 0  # beyond so many tokens RoPE is stretched, and blocks have other hashes; 0: never
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_running: int = 0
    num_waiting: int = 0


def mint_epoch() -> int:
    """Return an epoch for this incarnation of a service: later ones are greater, unless the clock was set back.

    It is the time in microseconds, which a Lua number (a double) can hold. If the clock was set back, a successor under
    the same id is listed only once its predecessor's lease has expired.
    """
    return time.time_ns() // 1000


async def list_nodes(redis: Redis) -> list[NodeRecord]:
    """Return the records of all services with a valid lease, in no order. Unreadable ones are left out.

    Raises REDIS_ERRORS.
    """
    nodes = []
    packed: Any = await redis.register_script(_LIST)(keys=[_NODES])
    for record in packed:
        try:
            nodes.append(_DECODER.decode(record))
        except msgspec.MsgspecError:
            _log.warning("the registry holds a record that cannot be read: was it written by another version of Baton?")
    return nodes


class Registration:
    """Keeps one record in the registry from `start` until `stop`, through any outages of Redis."""

    def __init__(self, redis: Redis, record: NodeRecord) -> None:
        self.record = record
        self._renew_script = redis.register_script(_RENEW)
        self._deregister_script = redis.register_script(_DEREGISTER)
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._renewed_s = time.monotonic()
        self._has_lapsed = False

    async def start(self) -> None:
        """Register, and renew the lease from now on. If Redis is unreachable it keeps trying and raises nothing."""
        await self._renew()
        self._task = asyncio.create_task(self._keep_renewing(), name="registration")

    async def stop(self) -> None:
        """Stop renewing and remove the record. Idempotent."""
        if self._task is None:
            return
        task, self._task = self._task, None
        await tasks.end(task)
        await self.deregister()

    async def deregister(self) -> None:
        """Remove the record, unless a later incarnation owns it by now. Ignores REDIS_ERRORS."""
        with contextlib.suppress(*REDIS_ERRORS):
            await self._deregister_script(keys=self._keys(), args=[self.record.node_id, self.record.epoch])

    def update(self, **fields: Any) -> None:
        """Change fields of the record. A new `state` is written at once, other fields with the next renewal."""
        before = self.record.state
        self.record = msgspec.structs.replace(self.record, **fields)
        if self.record.state != before:
            self._changed.set()

    def _keys(self) -> list[str]:
        return [f"baton:node:{self.record.node_id}", _NODES]

    async def _keep_renewing(self) -> None:
        while self._task is not None:  # before Python 3.12 redis-py may swallow a cancel
            await tasks.wait(self._changed, RENEWAL_S)
            self._changed.clear()
            await self._renew()

    async def _renew(self) -> None:
        record = self.record
        args: list[str | int | bytes] = [record.node_id, record.epoch, msgspec.msgpack.encode(record), _LEASE_MS]
        try:
            renewed: Any = await self._renew_script(keys=self._keys(), args=args)
        except REDIS_ERRORS as error:
            FAILURES.labels("registry").inc()
            if not self._has_lapsed and time.monotonic() - self._renewed_s > LEASE_S:
                self._has_lapsed = True
                _log.warning("the registration of %s has lapsed: %s", record.node_id, type(error).__name__)
            return
        if not renewed:
            _log.error("another process with a later epoch has registered as %s", record.node_id)
        self._renewed_s, self._has_lapsed = time.monotonic(), False


_DECODER = msgspec.msgpack.Decoder(NodeRecord)
