"""One suite for every transport: whatever carries the messages, blocks arrive whole, or not at all.

Run as a script, this file is a prefill node of its own, to be killed.
"""

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest
import torch
import uvloop

from baton import rpc
from baton.errors import LayoutMismatch, TransferError
from baton.kv_layout import KVLayout
from baton.v1 import transfer_pb2
from kv_transfer import KVPool, KVReceiver, KVSender
from kv_transfer.choose import make
from kv_transfer.faults import FAULTS
from kv_transfer.incoming import IncomingTransfer
from kv_transfer.outgoing import OutgoingTransfer
from kv_transfer.transport import Peer

TRANSPORTS = ["loopback", "tcp", "ucx"]
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


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return request.param


def run(main: Coroutine, loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(30):
            await main

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(bounded())
    gc.collect()


def new_pool(seed: int = 0, layout: KVLayout = LAYOUT, num_blocks: int = NUM_BLOCKS) -> KVPool:
    """Random bytes, zeros for seed 0."""
    size = layout.pool_bytes(num_blocks)
    if not seed:
        return KVPool(torch.zeros(size, dtype=torch.uint8), layout, num_blocks)
    generator = torch.Generator().manual_seed(seed)
    return KVPool(torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator), layout, num_blocks)


class Pair:
    """A receiving node with its gRPC server, and the senders that a test asks for."""

    def __init__(self, transport: str, **receiver_options) -> None:
        self.transport = transport
        self.target = new_pool()
        self.receiver = KVReceiver(self.target, "d0", 7, "127.0.0.1", transport, **receiver_options)
        self.senders: list[KVSender] = []

    async def start(self) -> None:
        self.server = rpc.server()
        self.receiver.add_to(self.server)
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
        """Whether the target's blocks hold the source's bytes."""
        return all(
            self.target.view(group, here, 1) == source.view(group, there, 1)
            for group in range(LAYOUT.num_layer_groups)
            for here, there in zip(block_ids, source_ids, strict=True)
        )

    def untouched(self, block_ids: list[int], byte: int = 0, groups: int = LAYOUT.num_layer_groups) -> bool:
        expected = bytes([byte]) * LAYOUT.block_group_bytes
        return all(
            self.target.view(group, block_id, 1) == expected for group in range(groups) for block_id in block_ids
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
    """Wait until that many messages have claimed their place."""
    while len(incoming._digests) + len(incoming._writing) < number:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def fragmented(random_: random.Random, number: int) -> list[int]:
    """Blocks in a few runs, in any order of the runs."""
    ids: list[int] = []
    taken: set[int] = set()
    while len(ids) < number:
        start, length = random_.randrange(NUM_BLOCKS), random_.choice([1, 1, 2, 7, 40])
        run_ = [b for b in range(start, min(start + length, NUM_BLOCKS)) if b not in taken][: number - len(ids)]
        taken.update(run_)
        ids += run_
    return ids


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_blocks_arrive_whole(transport, loop_factory):
    async def main():
        async with pair(transport) as p:
            source = new_pool(1)
            incoming = p.grant(list(range(100, 164)))
            outgoing = p.sender(source).open(incoming.grant, list(range(64)))
            all_ready(outgoing, 64)
            stats = await commit(outgoing)
            request = await incoming.committed()
            assert (request.num_tokens, request.first_token) == (123, 5)
            assert (stats.num_blocks, stats.num_bytes) == (64, 64 * LAYOUT.block_bytes)
            assert p.filled(list(range(100, 164)), source, list(range(64)))
            assert p.untouched([99, 164])
            assert p.receiver.num_open_transfers == 0

    run(main(), loop_factory)


@pytest.mark.parametrize("seed", range(4))
def test_random_plans(transport, seed):
    """Fragmented on both sides, a part present already, chunks that end anywhere, small and large messages."""

    async def main():
        random_ = random.Random(seed)
        source = new_pool(seed + 1)
        async with pair(transport, max_message_bytes=random_.choice([1, 40_000, 2**20])) as p:
            sender = p.sender(source)
            for _ in range(3):
                number, present = random_.randrange(2, 200), random_.randrange(0, 2)
                source_ids, target_ids = fragmented(random_, number), fragmented(random_, number - present)
                p.fill(range(NUM_BLOCKS), 0)
                incoming = p.grant(target_ids, present)
                outgoing = sender.open(incoming.grant, source_ids)
                for end in [*sorted(random_.sample(range(number), min(3, number))), number]:
                    for group in range(LAYOUT.num_layer_groups):
                        outgoing.ready(group, end)
                        outgoing.ready(group, end // 2)  # never takes anything back
                    await asyncio.sleep(0)
                await commit(outgoing)
                await incoming.committed()
                assert p.filled(target_ids, source, source_ids[present:])
                assert p.untouched(set(range(NUM_BLOCKS)) - set(target_ids))

    run(main())


def test_nothing_missing_is_a_commit_alone(transport):
    async def main():
        async with pair(transport) as p:
            incoming = p.grant([], present=3)
            outgoing = p.sender(new_pool(1)).open(incoming.grant, [1, 2, 3])
            assert (await commit(outgoing)).num_bytes == 0
            await incoming.committed()

    run(main())


def test_many_transfers_at_once_from_two_nodes(transport):
    async def main():
        sources = {"p0": new_pool(1), "p1": new_pool(2)}
        async with pair(transport) as p:
            senders = {name: p.sender(pool, name) for name, pool in sources.items()}

            async def one(index: int) -> None:
                name = f"p{index % 2}"
                ids = list(range(index * 16, index * 16 + 16))
                incoming = p.grant(ids, node_id=name)
                outgoing = senders[name].open(incoming.grant, ids[::-1])
                for end in range(1, 17):
                    all_ready(outgoing, end)
                    await asyncio.sleep(0)
                await commit(outgoing)
                await incoming.committed()
                assert p.filled(ids, sources[name], ids[::-1])

            await asyncio.gather(*(one(index) for index in range(32)))
            assert p.receiver.num_open_transfers == 0

    run(main())


def test_grant_after_everything_is_computed_or_long_before(transport):
    async def main():
        source = new_pool(1)
        async with pair(transport) as p:
            sender = p.sender(source)
            early = p.grant([1, 2, 3])
            waiting = sender.open(early.grant, [4, 5, 6])
            late = p.grant([7, 8])
            outgoing = sender.open(late.grant, [9, 10])
            all_ready(outgoing, 2)
            await commit(outgoing)
            assert p.untouched([1, 2, 3])
            all_ready(waiting, 3)
            await commit(waiting)
            assert p.filled([1, 2, 3], source, [4, 5, 6])

    run(main())


def test_cancel_in_the_middle_then_reuse(transport):
    """After `cancel` no byte of the cancelled transfer is written, however much of it the sender still has."""

    async def main():
        source = new_pool(1)
        async with pair(transport, max_message_bytes=200_000) as p:
            sender = p.sender(source)
            ids = list(range(NUM_BLOCKS))
            incoming = p.grant(ids)
            outgoing = sender.open(incoming.grant, ids)
            all_ready(outgoing, NUM_BLOCKS)
            await arrivals(incoming, 3)
            await incoming.cancel()
            p.fill(ids, 9)
            with pytest.raises(TransferError, match=r"stale or over|cancelled"):
                await commit(outgoing)
            await outgoing.abort()
            assert p.untouched(ids, 9)
            with pytest.raises(TransferError):
                await incoming.committed()
            again = p.grant([5, 6])  # and the connection has survived
            outgoing = sender.open(again.grant, [1, 2])
            all_ready(outgoing, 2)
            await commit(outgoing)
            assert p.filled([5, 6], source, [1, 2])

    run(main())


def test_abort_in_the_middle_then_reuse_of_the_source(transport):
    """After `abort` the source may change: every message was sent as it was before, or not at all."""

    async def main():
        source, original = new_pool(1), new_pool(1)
        async with pair(transport, max_message_bytes=200_000) as p:
            sender = p.sender(source)
            ids = list(range(NUM_BLOCKS))
            p.fill(ids, 9)
            incoming = p.grant(ids)
            outgoing = sender.open(incoming.grant, ids)
            all_ready(outgoing, NUM_BLOCKS)
            await arrivals(incoming, 3)
            await outgoing.abort()
            await outgoing.abort()
            for group in range(LAYOUT.num_layer_groups):
                source.view(group, 0, NUM_BLOCKS)[:] = bytes(NUM_BLOCKS * LAYOUT.block_group_bytes)
            await incoming.cancel()
            whole = [p.target.view(0, block, 1) == original.view(0, block, 1) for block in ids]
            assert any(whole)
            assert p.untouched([block for block in ids if not whole[block]], 9, groups=1)

    run(main())


def test_lease_ends(transport):
    async def main():
        async with pair(transport) as p:
            incoming = p.grant([1, 2], lease_s=0.05)
            with pytest.raises(TransferError, match="lease"):
                await incoming.committed()
            sender = p.sender(new_pool(1))
            outgoing = sender.open(incoming.grant, [1, 2])
            all_ready(outgoing, 2)
            with pytest.raises(TransferError, match="lease"):
                await commit(outgoing)
            await incoming.cancel()
            assert p.untouched([1, 2])
            outgoing = sender.open(incoming.grant, [1, 2])
            all_ready(outgoing, 2)
            with pytest.raises(TransferError, match="stale or over"):
                await commit(outgoing)
            assert p.untouched([1, 2])

    run(main())


def test_renewed_lease_lasts(transport):
    async def main():
        async with pair(transport) as p:
            incoming = p.grant([1], lease_s=0.2)
            incoming.renew(10)
            incoming.renew(0.01)  # never shortens
            await asyncio.sleep(0.3)
            outgoing = p.sender(new_pool(1)).open(incoming.grant, [1])
            all_ready(outgoing, 1)
            await commit(outgoing)

    run(main())


def test_stale_grants_are_refused(transport):
    """Of an earlier life of the decode node, for another node, unknown, and used twice."""

    async def main():
        source = new_pool(1)
        async with pair(transport) as p:
            sender = p.sender(source)
            incoming = p.grant([1])
            old_life = transfer_pb2.Grant.FromString(incoming.grant.SerializeToString())
            old_life.decode_epoch = 6
            other = sender.open(old_life, [1])
            all_ready(other, 1)
            with pytest.raises(TransferError, match="restarted"):
                await commit(other)
            thief = p.sender(source, "p9").open(incoming.grant, [1])
            all_ready(thief, 1)
            with pytest.raises(TransferError, match="stale or over"):
                await commit(thief)
            if transport != "ucx":  # over UCX the tag itself, which only p0 was told, is what lets a message in
                assert p.untouched([1])
            unknown = transfer_pb2.Grant.FromString(incoming.grant.SerializeToString())
            unknown.grant_id += 100
            unknown.tag_base = 12345 << 20
            dropped = sender.open(unknown, [1])
            all_ready(dropped, 1)
            with pytest.raises(TransferError, match="stale or over"):
                await commit(dropped)
            await incoming.cancel()
            fresh = p.grant([2])
            outgoing = sender.open(fresh.grant, [3])
            all_ready(outgoing, 1)
            await commit(outgoing)
            assert p.filled([2], source, [3])
            with pytest.raises(TransferError, match="stale or over"):
                await commit(outgoing)
            assert p.untouched([1]) or transport == "ucx"

    run(main())


def test_corrupted_message_is_never_accepted(transport):
    async def main():
        source = new_pool(1)
        async with pair(transport) as p:
            sender = p.sender(source)
            incoming = p.grant([1, 2, 3])
            FAULTS.arm("corrupt_message")
            outgoing = sender.open(incoming.grant, [1, 2, 3])
            all_ready(outgoing, 3)
            with pytest.raises(TransferError, match="not those that were sent"):
                await commit(outgoing)
            with pytest.raises(TransferError, match="not those that were sent"):
                await incoming.committed()
            await incoming.cancel()
            incoming = p.grant([1, 2, 3])
            outgoing = sender.open(incoming.grant, [1, 2, 3])
            all_ready(outgoing, 3)
            await commit(outgoing)
            assert p.filled([1, 2, 3], source, [1, 2, 3])

    run(main())


def test_disagreement_about_tokens_is_refused(transport):
    async def main():
        async with pair(transport) as p:
            incoming = p.grant([1])
            outgoing = p.sender(new_pool(1)).open(incoming.grant, [1])
            all_ready(outgoing, 1)
            with pytest.raises(TransferError, match="disagree"):
                await outgoing.commit(1, b"other", 1, 5.0)

    run(main())


def test_layout_mismatch_names_both_sides(transport):
    async def main():
        async with pair(transport) as p:
            other = LAYOUT.__class__.from_proto(LAYOUT.to_proto())
            other = KVLayout(**{**{f: getattr(other, f) for f in other.__struct_fields__}, "dtype": "float16"})
            incoming = p.grant([1])
            outgoing = p.sender(new_pool(1, other)).open(incoming.grant, [1])
            all_ready(outgoing, 1)
            with pytest.raises(LayoutMismatch, match="dtype: bfloat16 on decode node d0, float16 on prefill node p0"):
                await commit(outgoing)

    run(main())


def test_transport_mismatch_names_both_sides():
    async def main():
        async with pair("tcp") as p:
            sender = KVSender(new_pool(1), "p0", 1, "loopback", "")
            p.senders.append(sender)
            with pytest.raises(LayoutMismatch, match="tcp on decode node d0, loopback on prefill node p0"):
                await commit(sender.open(p.grant([1]).grant, [1]))

    run(main())


def test_grant_that_does_not_fit_the_request(transport):
    async def main():
        async with pair(transport) as p:
            with pytest.raises(TransferError, match="does not fit"):
                p.sender(new_pool(1)).open(p.grant([1, 2], present=1).grant, [1, 2])

    run(main())


def test_no_connection_without_a_secret(transport):
    async def main():
        async with pair(transport) as p:
            stranger = make(transport, "127.0.0.1")
            try:
                for _ in range(2):
                    with pytest.raises(TransferError):
                        await stranger.connect("127.0.0.1", p.receiver.listener.port, b"x" * 32, lambda: None)
            finally:
                await stranger.close()
            secret = await p.receiver.expect(Peer("p0", 1))
            assert p.receiver.admit(secret) == Peer("p0", 1)
            assert p.receiver.admit(secret) is None

    run(main())


def test_restarted_prefill_node_takes_the_place_of_the_old(transport):
    async def main():
        source = new_pool(1)
        async with pair(transport) as p:
            old = p.sender(source, epoch=1)
            first = p.grant([1], epoch=1)
            outgoing = old.open(first.grant, [1])
            all_ready(outgoing, 1)
            await commit(outgoing)
            left_behind = p.grant([2], epoch=1)
            new = p.sender(source, epoch=2)
            fresh = p.grant([3], epoch=2)
            outgoing = new.open(fresh.grant, [4])
            all_ready(outgoing, 1)
            await commit(outgoing)
            assert p.filled([3], source, [4])
            with pytest.raises(TransferError, match="restarted"):
                await left_behind.committed()
            late = old.open(left_behind.grant, [2])
            all_ready(late, 1)
            with pytest.raises(TransferError):
                await commit(late)
            await left_behind.cancel()
            assert p.untouched([2])

    run(main())


def test_restarted_decode_node_at_the_same_address(transport):
    async def main():
        source = new_pool(1)
        first = Pair(transport)
        await first.start()
        sender = first.sender(source)
        outgoing = sender.open(first.grant([1]).grant, [1])
        all_ready(outgoing, 1)
        await commit(outgoing)
        stuck = sender.open(first.grant([2]).grant, [2])
        first.senders.clear()
        await first.stop()
        second = Pair(transport)
        second.receiver.epoch = 8
        second.server = rpc.server()
        second.receiver.add_to(second.server)
        second.receiver.address = first.receiver.address
        second.server.add_insecure_port(second.receiver.address)
        await second.server.start()
        await second.receiver.start()
        second.senders.append(sender)
        try:
            outgoing = sender.open(second.grant([1]).grant, [3])
            all_ready(outgoing, 1)
            await commit(outgoing)
            assert second.filled([1], source, [3])
            all_ready(stuck, 1)
            with pytest.raises(TransferError):
                await commit(stuck)
            await stuck.abort()
        finally:
            await second.stop()

    run(main())


class Child:
    """This file as a process of its own, to be killed and frozen: `send` or `receive`, a line in for a line out."""

    def __init__(self, role: str, transport: str, faults: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, role, transport],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "BATON_KV_FAULTS": faults},
        )

    def tell(self, line: str) -> None:
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    async def hear(self) -> str:
        return (await asyncio.to_thread(self.process.stdout.readline)).decode().strip()

    def finish(self) -> int:
        """Its exit code, after it was let go on."""
        try:
            self.process.send_signal(signal.SIGCONT)
            self.process.stdin.close()
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.stdout.close()


async def send_what_is_granted(transport: str) -> None:
    """In: a grant. Out: ok, or why not."""
    sender = KVSender(new_pool(1), "p0", 1, transport, "")
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        grant = transfer_pb2.Grant.FromString(bytes.fromhex(line))
        outgoing = sender.open(grant, list(range(sum(grant.run_lengths))))
        all_ready(outgoing, NUM_BLOCKS)
        try:
            await commit(outgoing)
            print("ok", flush=True)
        except TransferError as error:
            await outgoing.abort()
            print(error, flush=True)
    await sender.close()


async def grant_what_is_asked(transport: str) -> None:
    """In: a number of blocks. Out: a grant for them."""
    async with pair(transport, max_message_bytes=2**18) as p:
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            print(p.grant(list(range(int(line)))).grant.SerializeToString().hex(), flush=True)


@pytest.mark.parametrize("transport", ["tcp", "ucx"])
@pytest.mark.parametrize("fault", ["crash_mid_transfer", "crash_before_commit"])
def test_killed_prefill_node(transport, fault):
    async def main():
        async with pair(transport, max_message_bytes=2**18) as p:
            child = Child("send", transport, fault)
            ids = list(range(NUM_BLOCKS))
            incoming = p.grant(ids)
            child.tell(incoming.grant.SerializeToString().hex())
            with pytest.raises(TransferError, match="lost"):
                await incoming.committed()
            await incoming.cancel()
            p.fill(ids, 3)
            assert child.finish() == -signal.SIGKILL
            sender = p.sender(new_pool(1), epoch=2)
            incoming = p.grant([1, 2, 3], epoch=2)
            outgoing = sender.open(incoming.grant, [0, 1, 2])
            all_ready(outgoing, 3)
            await commit(outgoing)
            assert p.filled([1, 2, 3], new_pool(1), [0, 1, 2])
            assert p.untouched([0, 4, NUM_BLOCKS - 1], 3)

    run(main())


@pytest.mark.parametrize(("transport", "at_once"), [("tcp", False), ("ucx", False), ("ucx", True)])
def test_frozen_prefill_node_is_noticed_and_fenced(transport, at_once):
    """Whether its silence ends the transfer, or a cancel that cannot wait for it."""

    async def main():
        async with pair(transport, max_message_bytes=2**18) as p:
            child = Child("send", transport, "freeze_mid_transfer")
            ids = list(range(NUM_BLOCKS))
            incoming = p.grant(ids)
            child.tell(incoming.grant.SerializeToString().hex())
            await arrivals(incoming, 1)
            async with asyncio.timeout(3.5):
                if not at_once:
                    with pytest.raises(TransferError, match="lost"):
                        await incoming.committed()
                await incoming.cancel()
            p.fill(ids, 3)
            child.process.send_signal(signal.SIGCONT)
            assert await child.hear() != "ok"
            assert p.untouched(ids, 3)
            assert child.finish() == 0

    run(main())


@pytest.mark.parametrize("transport", ["tcp", "ucx"])
@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
def test_lost_decode_node_is_noticed(transport, end):
    """With more under way than buffers hold, and with a message that fits into them."""

    async def main():
        child = Child("receive", transport)
        sender = KVSender(new_pool(1), "p0", 1, transport, "")
        grants = []
        for number in (1, 1, NUM_BLOCKS):
            child.tell(str(number))
            grants.append(transfer_pb2.Grant.FromString(bytes.fromhex(await child.hear())))
        first, small, large = [sender.open(grant, list(range(sum(grant.run_lengths)))) for grant in grants]
        all_ready(first, 1)
        await commit(first)
        child.process.send_signal(end)
        for outgoing, number in ((small, 1), (large, NUM_BLOCKS)):
            all_ready(outgoing, number)
        async with asyncio.timeout(4.0):
            for outgoing in (large, small):
                with pytest.raises(TransferError):
                    await commit(outgoing)
        async with asyncio.timeout(4.0):
            await asyncio.gather(small.abort(), large.abort())
            await sender.close()
        child.finish()

    run(main())


@pytest.mark.parametrize("transport", ["tcp", "ucx"])
def test_abort_towards_a_frozen_decode_node(transport):
    """It does not wait for ever, and does not return before the last read."""

    async def main():
        child = Child("receive", transport)
        sender = KVSender(new_pool(1), "p0", 1, transport, "")
        grants = []
        for number in (1, NUM_BLOCKS):
            child.tell(str(number))
            grants.append(transfer_pb2.Grant.FromString(bytes.fromhex(await child.hear())))
        first, large = [sender.open(grant, list(range(sum(grant.run_lengths)))) for grant in grants]
        all_ready(first, 1)
        await commit(first)
        child.process.send_signal(signal.SIGSTOP)
        all_ready(large, NUM_BLOCKS)
        await asyncio.sleep(0)
        assert large._num_inflight
        async with asyncio.timeout(3.0):
            await large.abort()
        assert not large._num_inflight
        await sender.close()
        child.finish()

    run(main())


@pytest.mark.parametrize("transport", ["tcp", "ucx"])
def test_process_ends_cleanly_without_close(transport):
    """A process that just ends, in the middle of a transfer, neither hangs nor aborts."""
    assert subprocess.run([sys.executable, __file__, "exit", transport], timeout=20).returncode == 0


async def exit_in_the_middle(transport: str) -> None:
    p = Pair(transport, max_message_bytes=2**18)
    await p.start()
    ids = list(range(NUM_BLOCKS))
    incoming = p.grant(ids)
    all_ready(p.sender(new_pool(1)).open(incoming.grant, ids), NUM_BLOCKS)
    await arrivals(incoming, 2)


if __name__ == "__main__":
    roles = {"send": send_what_is_granted, "receive": grant_what_is_asked, "exit": exit_in_the_middle}
    uvloop.run(roles[sys.argv[1]](sys.argv[2]))
