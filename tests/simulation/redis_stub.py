"""A Redis as the registry and the prefix index use it: their scripts, in Python. It may lose everything, or not answer.

Redis is a hint and not on the path of correctness, so this one is simple: a call takes a network's time, or fails.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

from redis.exceptions import TimeoutError as RedisTimeout

from baton.kv import index_writer, prefix_index
from baton.net import registry
from tests.simulation.loop import Process, current_process
from tests.simulation.network import Network

_HASH = 16


class RedisServer:
    """What it holds. `process` can be cut off, frozen or killed like any other."""

    def __init__(self, network: Network, process: Process) -> None:
        self.network, self.process = network, process
        self.nodes: dict[str, tuple[int, bytes, float]] = {}  # epoch, record, end of its lease
        self.sets: dict[str, tuple[dict[bytes, None], float]] = {}
        self.seqs: dict[str, int] = {}
        self.events: list[dict[bytes, bytes]] = []
        self.num_lost = 0  # events before those

    def flush(self) -> None:
        """Lose everything."""
        self.nodes, self.sets, self.seqs = {}, {}, {}
        self.num_lost += len(self.events)
        self.events = []

    @property
    def now_s(self) -> float:
        return self.network.loop.time()

    def set_of(self, key: str) -> dict[bytes, None] | None:
        """None where its lease has ended."""
        blocks, end_s = self.sets.get(key, ({}, 0.0))
        return blocks if end_s > self.now_s else None


class RedisClient:
    """Stands in for `redis.asyncio.Redis`."""

    def __init__(self, server: RedisServer, timeout_s: float) -> None:
        self._server, self._timeout_s = server, timeout_s
        self._process = current_process()

    def register_script(self, text: str) -> Callable[..., Any]:
        work = _SCRIPTS[text]

        async def call(keys: list[str], args: Any = ()) -> Any:
            return await self._call(lambda server: work(server, keys, list(args)))

        return call

    async def get(self, key: str) -> Any:
        return await self._call(lambda server: server.seqs.get(key))

    async def unlink(self, *keys: str) -> None:
        await self._call(lambda server: [server.sets.pop(key, None) for key in keys])

    async def sscan(self, key: str, cursor: int, count: int) -> Any:
        return await self._call(lambda server: (0, list(server.set_of(key) or ())))

    async def xrevrange(self, key: str, count: int) -> Any:
        return await self._call(lambda server: [(_id(server.num_lost + len(server.events)), {})])

    async def xread(self, streams: dict[str, bytes], count: int, block: int) -> Any:
        ((key, after),) = streams.items()
        waited_s = 0.0
        while not (entries := await self._call(lambda server: _after(server, after, count))):
            if waited_s > block / 1000:
                return []
            await asyncio.sleep(0.1)
            waited_s += 0.1
        return [(key, entries)]

    async def aclose(self) -> None:
        """Nothing to close."""

    async def _call(self, work: Callable[[RedisServer], Any]) -> Any:
        network, process = self._server.network, self._server.process
        await asyncio.sleep(network.latency_s(self._process, process))
        if (
            process.frozen
            or not process.alive
            or network.is_blocked(self._process, process)
            or network.is_blocked(process, self._process)
        ):
            await asyncio.sleep(self._timeout_s)
            raise RedisTimeout("Timeout reading from redis")
        result = work(self._server)
        await asyncio.sleep(network.latency_s(process, self._process))
        return result


def _id(number: int) -> bytes:
    return b"%d-0" % number


def _after(server: RedisServer, after: bytes, count: int) -> list[Any]:
    first = max(int(after.split(b"-")[0]) - server.num_lost, 0)
    return [
        (_id(server.num_lost + at + 1), event) for at, event in enumerate(server.events[first : first + count], first)
    ]


def _renew(server: RedisServer, keys: list[str], args: list[Any]) -> int:
    node_id, epoch, record, lease_ms = args
    known = server.nodes.get(node_id)
    if known and known[2] > server.now_s and known[0] > epoch:
        return 0
    server.nodes[node_id] = epoch, record, server.now_s + lease_ms / 1000
    return 1


def _deregister(server: RedisServer, keys: list[str], args: list[Any]) -> int:
    if args[0] in server.nodes and server.nodes[args[0]][0] == args[1]:
        del server.nodes[args[0]]
    return 1


def _list(server: RedisServer, keys: list[str], args: list[Any]) -> list[bytes]:
    return [record for _, record, end_s in server.nodes.values() if end_s > server.now_s]


def _flush(server: RedisServer, keys: list[str], args: list[Any]) -> int:
    blocks_key, seq_key, _ = keys
    node, epoch, lease_ms, reset, stored, evicted, _ = args
    blocks = server.set_of(blocks_key)
    if reset:
        blocks = {}
        server.seqs[seq_key] = int(server.now_s * 1e6)
    elif blocks is None:
        return 0
    for at in range(0, len(stored), _HASH):
        blocks[stored[at : at + _HASH]] = None
    for at in range(0, len(evicted), _HASH):
        blocks.pop(evicted[at : at + _HASH], None)
    server.sets[blocks_key] = blocks, server.now_s + lease_ms / 1000
    if reset or stored or evicted:
        server.seqs[seq_key] += 1
        fields = {"node": node, "epoch": epoch, "seq": server.seqs[seq_key], "reset": reset}
        event = {name.encode(): str(value).encode() for name, value in fields.items()}
        server.events.append(event | {b"stored": stored, b"evicted": evicted})
    return 1


def _lookup(server: RedisServer, keys: list[str], args: list[Any]) -> list[int]:
    hashes = [block for (block,) in struct.iter_unpack(f"{_HASH}s", args[0])]
    return [next((i for i, block in enumerate(hashes) if block not in (server.set_of(key) or {})), len(hashes)) for key in keys]  # fmt: skip # noqa: E501


_SCRIPTS = {
    registry._RENEW: _renew,
    registry._DEREGISTER: _deregister,
    registry._LIST: _list,
    index_writer._FLUSH: _flush,
    prefix_index._LOOKUP: _lookup,
}
