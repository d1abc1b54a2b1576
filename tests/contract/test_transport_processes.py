"""Transfers between processes that are killed or frozen: the other side notices in time, and keeps its blocks safe."""

import asyncio
import signal

import psutil
import pytest
from kv_nodes import BETWEEN_PROCESSES, NUM_BLOCKS, Child, all_ready, arrivals, commit, new_pool, pair, run

from baton.errors import TransferError
from baton.v1 import transfer_pb2
from kv_transfer.sender import KVSender
from tests.waiting import until


@pytest.mark.parametrize("transport", BETWEEN_PROCESSES)
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


async def stopped(child: Child) -> None:
    await until(lambda: psutil.Process(child.process.pid).status() == psutil.STATUS_STOPPED)


@pytest.mark.parametrize(
    ("transport", "at_once"),
    [("shm", False), ("shm", True), ("tcp", False), ("ucx", False), ("ucx", True)],
)
def test_frozen_prefill_node_is_noticed_and_fenced(transport, at_once):
    """The transfer is ended by the sender's silence, or by a cancel that cannot wait for it."""

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
            await stopped(child)  # it may have been told of its first message only now
            child.process.send_signal(signal.SIGCONT)
            assert await child.hear() != "ok"
            assert p.untouched(ids, 3)
            assert child.finish() == 0

    run(main())


@pytest.mark.parametrize("transport", BETWEEN_PROCESSES)
@pytest.mark.parametrize("end", [signal.SIGSTOP, signal.SIGKILL])
def test_lost_decode_node_is_noticed(transport, end):
    """Tested with more bytes in flight than buffers hold, and with a message that fits into them."""

    async def main():
        child = Child("receive", transport)
        sender = KVSender(new_pool(1), "p0", 1, transport, "")
        grants = []
        for number in (1, 1, NUM_BLOCKS):
            child.tell(str(number))
            grants.append(transfer_pb2.Grant.FromString(bytes.fromhex(await child.hear())))
        first, small, large = [sender.open(grant, list(range(grant.num_missing_blocks))) for grant in grants]
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


@pytest.mark.parametrize("transport", BETWEEN_PROCESSES)
def test_abort_towards_a_frozen_decode_node(transport):
    """The abort does not wait for ever, and does not return before the last read."""

    async def main():
        child = Child("receive", transport)
        sender = KVSender(new_pool(1), "p0", 1, transport, "")
        grants = []
        for number in (1, NUM_BLOCKS):
            child.tell(str(number))
            grants.append(transfer_pb2.Grant.FromString(bytes.fromhex(await child.hear())))
        first, large = [sender.open(grant, list(range(grant.num_missing_blocks))) for grant in grants]
        all_ready(first, 1)
        await commit(first)
        child.process.send_signal(signal.SIGSTOP)
        all_ready(large, NUM_BLOCKS)
        await asyncio.sleep(0)
        assert large._loans
        async with asyncio.timeout(3.0):
            await large.abort()
        assert not large._loans
        await sender.close()
        child.finish()

    run(main())


@pytest.mark.parametrize("transport", BETWEEN_PROCESSES)
def test_process_ends_cleanly_without_close(transport):
    """A process that simply exits in the middle of a transfer neither hangs nor aborts."""
    assert Child("exit", transport).finish(20) == 0
