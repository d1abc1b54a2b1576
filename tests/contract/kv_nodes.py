"""Prefill and decode nodes for tests of transfers: in the test's own process, or in ones to be killed and frozen."""

import asyncio
import functools
import gc
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import torch
import uvloop
from forks import Forked, wait_to_be_forked
from loopback import LoopbackTransport

from baton.errors import TransferError
from baton.kv.layout import KVLayout
from baton.net import rpc
from baton.v1 import transfer_pb2
from kv_transfer.choose import MAKERS
from kv_transfer.faults import FAULTS
from kv_transfer.incoming import IncomingTransfer
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.pool import KVPool
from kv_transfer.receiver import KVReceiver
from kv_transfer.sender import KVSender
from kv_transfer.service import add_transfer_service
from kv_transfer.staged_pool import StagedPool

MAKERS["loopback"] = lambda host: LoopbackTransport()
TRANSPORTS = ["loopback", "shm", "tcp", "ucx"]
BETWEEN_PROCESSES = ["shm", "tcp", "ucx"]
LAYOUT = KVLayout(
    num_layers=4,
    layers_per_group=2,
    block_size=16,
    num_kv_heads=2,
    head_dim=64,
    dtype="bfloat16",
    model_fingerprint="ab",
)
NUM_BLOCKS = 512
HASH = b"h" * 16
LEASE_S = 20.0
NEVER_S = 100.0  # what takes as long does not happen; everything else may take its time on a busy machine
Pool: type[KVPool] | type[StagedPool] = KVPool  # that the pairs of a test have


def run(main: Coroutine, loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(NEVER_S):
            await main

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(bounded())
    gc.collect()


def new_pool(seed: int = 0, layout: KVLayout = LAYOUT, num_blocks: int = NUM_BLOCKS) -> KVPool:
    """Random bytes, zeros for seed 0."""
    size = layout.pool_bytes(num_blocks)
    if not seed:
        return Pool(torch.zeros(size, dtype=torch.uint8), layout, num_blocks)
    return Pool(_random_bytes(seed, size).clone(), layout, num_blocks)


@functools.lru_cache(4)
def _random_bytes(seed: int, size: int) -> torch.Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


class Staged(StagedPool):
    """A pool in host memory that is staged like one on a device."""

    def __init__(self, buffer: torch.Tensor, layout: KVLayout, num_blocks: int) -> None:
        super().__init__(buffer, layout, num_blocks, max_lent_bytes=2**20)
        self.view = KVPool(buffer, layout, num_blocks).view


class Pair:
    """A receiving node with its gRPC server, and the senders that a test asks for."""

    def __init__(self, transport: str, **receiver_options) -> None:
        self.transport = transport
        self.target = new_pool()
        self.receiver = KVReceiver(self.target, "d0", 7, "127.0.0.1", transport, **receiver_options)
        self.senders: list[KVSender] = []

    async def start(self) -> None:
        self.server = rpc.server()
        add_transfer_service(self.receiver, self.server)
        self.receiver.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()
        await self.receiver.start()

    async def stop(self) -> None:
        for sender in self.senders:
            await sender.close()
        await self.receiver.close()
        await self.server.stop(None)

    def sender(self, pool: KVPool, node_id: str = "p0", epoch: int = 1) -> KVSender:
        self.senders.append(KVSender(pool, node_id, epoch, self.transport, ""))
        return self.senders[-1]

    def grant(
        self, block_ids: list[int], present: int = 0, node_id: str = "p0", epoch: int = 1, lease_s: float = LEASE_S
    ):
        return self.receiver.grant(block_ids, present, node_id, epoch, lease_s, HASH)

    def filled(self, block_ids: list[int], source: KVPool, source_ids: list[int]) -> bool:
        """Whether the target's blocks contain the source's bytes."""
        return all(
            bytes(self.target.view(group, here, 1)) == bytes(source.view(group, there, 1))
            for group in range(LAYOUT.num_layer_groups)
            for here, there in zip(block_ids, source_ids, strict=True)
        )

    def untouched(self, block_ids: list[int], byte: int = 0, groups: int = LAYOUT.num_layer_groups) -> bool:
        expected = bytes([byte]) * LAYOUT.block_group_bytes
        return all(
            bytes(self.target.view(group, block_id, 1)) == expected for group in range(groups) for block_id in block_ids
        )

    def fill(self, block_ids: list[int], byte: int) -> None:
        for group in range(LAYOUT.num_layer_groups):
            for block_id in block_ids:
                self.target.view(group, block_id, 1)[:] = bytes([byte]) * LAYOUT.block_group_bytes


@asynccontextmanager
async def pair(transport: str, **receiver_options) -> AsyncIterator[Pair]:
    made = Pair(transport, **receiver_options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def all_ready(outgoing: OutgoingTransfer, num_blocks: int) -> None:
    for group in range(LAYOUT.num_layer_groups):
        outgoing.ready(group, num_blocks)


async def commit(outgoing: OutgoingTransfer, timeout_s: float = 10.0):
    return await outgoing.commit(123, HASH, 5, timeout_s)


async def arrivals(incoming: IncomingTransfer, number: int) -> None:
    """Wait until so many messages have claimed their slots."""
    while len(incoming._digests) + len(incoming._writing) < number:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def ship(p: Pair, sender: KVSender, to: list[int], blocks: list[int]) -> None:
    """Transfer, trying again until it works: an attempt may meet an old connection, or time out on a busy machine."""
    while True:
        incoming = p.grant(to)
        sender._unreachable.clear()
        outgoing = sender.open(incoming.grant, blocks)
        all_ready(outgoing, len(blocks))
        try:
            await commit(outgoing, 15.0)
            break
        except TransferError as error:
            print("not yet:", error)
            await outgoing.abort()
            await incoming.cancel()


def fragmented(random_: random.Random, number: int) -> list[int]:
    """Block ids in a few runs, which are in random order."""
    ids: list[int] = []
    taken: set[int] = set()
    while len(ids) < number:
        start, length = random_.randrange(NUM_BLOCKS), random_.choice([1, 1, 2, 7, 40])
        run_ = [b for b in range(start, min(start + length, NUM_BLOCKS)) if b not in taken][: number - len(ids)]
        taken.update(run_)
        ids += run_
    return ids


class Child:
    """This file as a process (`send` or `receive`) to be killed or frozen; it answers each input line with one line."""

    def __init__(self, role: str, transport: str, faults: str = "") -> None:
        self.process = Forked(__file__, role, transport, faults)

    def tell(self, line: str) -> None:
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    async def hear(self) -> str:
        try:
            return (await asyncio.to_thread(self.process.stdout.readline)).decode().strip()
        except asyncio.CancelledError:
            self.process.kill()  # else the thread would wait for ever, and the loop for the thread
            raise

    def finish(self, timeout_s: float = 10) -> int:
        """Continue the process, wait for its end, and return its exit code."""
        try:
            self.process.send_signal(signal.SIGCONT)
            self.process.stdin.close()
            return self.process.wait(timeout_s)
        finally:
            self.process.kill()
            self.process.stdout.close()


async def send_what_is_granted(transport: str) -> None:
    """Read a grant; write `ok`, or the reason of the failure."""
    sender = KVSender(new_pool(1), "p0", 1, transport, "")
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        grant = transfer_pb2.Grant.FromString(bytes.fromhex(line))
        outgoing = sender.open(grant, list(range(grant.num_missing_blocks)))
        all_ready(outgoing, NUM_BLOCKS)
        try:
            await commit(outgoing)
            print("ok", flush=True)
        except TransferError as error:
            await outgoing.abort()
            print(error, flush=True)
    await sender.close()


async def grant_what_is_asked(transport: str) -> None:
    """Read a number of blocks; write a grant for them."""
    async with pair(transport, max_message_bytes=2**18) as p:
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            print(p.grant(list(range(int(line)))).grant.SerializeToString().hex(), flush=True)


async def exit_in_the_middle(transport: str) -> None:
    p = Pair(transport, max_message_bytes=2**18)
    await p.start()
    ids = list(range(NUM_BLOCKS))
    incoming = p.grant(ids)
    all_ready(p.sender(new_pool(1)).open(incoming.grant, ids), NUM_BLOCKS)
    await arrivals(incoming, 2)


if __name__ == "__main__":
    roles = {"send": send_what_is_granted, "receive": grant_what_is_asked, "exit": exit_in_the_middle}
    role, transport, *faults = wait_to_be_forked()
    for fault in filter(None, faults):
        FAULTS.arm(fault)
    uvloop.run(roles[role](transport))
