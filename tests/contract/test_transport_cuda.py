"""Transfers between pools on a GPU, from a process that is killed, frozen, or lies."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import kv_nodes
import psutil
import pytest
import torch
import uvloop
from kv_nodes import HASH, LAYOUT, NUM_BLOCKS, Child, Pair, all_ready, arrivals, commit, new_pool, pair, run

from baton.errors import TransferError
from kv_transfer.cuda import driver
from kv_transfer.cuda.device_memory import DeviceMemory, exported
from kv_transfer.faults import FAULTS
from kv_transfer.pool import KVPool
from kv_transfer.staged_pool import StagedPool
from tests.waiting import until


def on_gpu(test):
    """Skip the test without a GPU."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")(test))


ALL = list(range(NUM_BLOCKS))


class OnGpu(StagedPool):
    """A pool on the GPU with a view for tests, which is a copy."""

    def __init__(self, buffer, layout, num_blocks):
        self.buffer = buffer.cuda()
        super().__init__(self.buffer, layout, num_blocks)

    def view(self, layer_group, first_block, num_blocks):
        host = KVPool(self.buffer.cpu(), self.layout, self.num_blocks)
        return host.view(layer_group, first_block, num_blocks)


class Sender(Child):
    """This file as a process: a prefill node with the pool of seed 1."""

    def __init__(self, *faults: str) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parents[2])])}
        self.process = subprocess.Popen(
            [sys.executable, __file__, *faults], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self.process.stdout.readline() == b"begun\n"


@pytest.fixture(autouse=True)
def pools(request, monkeypatch):
    if request.node.get_closest_marker("gpu"):
        monkeypatch.setattr(kv_nodes, "Pool", OnGpu)


def rows(pool: OnGpu) -> torch.Tensor:
    """View the pool as [layer group, block, bytes]."""
    return pool.buffer.view(LAYOUT.num_layer_groups, NUM_BLOCKS, -1)


def ask(child: Child, p: Pair, ids: list[int], epoch: int = 1):
    incoming = p.grant(ids, epoch=epoch)
    child.tell(incoming.grant.SerializeToString().hex())
    return incoming


@on_gpu
@pytest.mark.parametrize("max_message_bytes", [1, 2**18, 2**22])
def test_blocks_arrive_where_they_were_granted(max_message_bytes):
    async def main():
        child = Sender()
        async with pair("cuda", max_message_bytes=max_message_bytes) as p:
            expected = rows(new_pool(1))
            for ids in ([5], [7, 8, 9, 3], torch.randperm(NUM_BLOCKS)[:300].tolist()):
                p.target.buffer.zero_()
                incoming = ask(child, p, ids)
                await incoming.committed()
                assert await child.hear() == "ok"
                assert torch.equal(rows(p.target)[:, ids], expected[:, : len(ids)])
                others = sorted({*ALL} - {*ids})
                assert not rows(p.target)[:, others].any()
                assert incoming.transports == {"cuda"}
        assert child.finish() == 0

    run(main())


@on_gpu
@pytest.mark.parametrize("fault", ["crash_mid_transfer", "crash_before_commit"])
def test_a_killed_sender_costs_its_own_transfer(fault):
    async def main():
        async with pair("cuda", max_message_bytes=2**18) as p:
            child = Sender(fault)
            incoming = ask(child, p, ALL)
            with pytest.raises(TransferError, match="lost"):
                await incoming.committed()
            await incoming.cancel()
            p.target.buffer.fill_(3)
            assert child.finish() == -signal.SIGKILL
            again = Sender("epoch2")
            incoming = ask(again, p, [1, 2, 3], epoch=2)
            await incoming.committed()
            assert await again.hear() == "ok"
            assert torch.equal(rows(p.target)[:, 1:4], rows(new_pool(1))[:, :3])
            assert rows(p.target)[:, [0, 4, NUM_BLOCKS - 1]].eq(3).all()
            assert again.finish() == 0

    run(main())


@on_gpu
def test_a_frozen_sender_is_noticed_and_fenced():
    async def main():
        async with pair("cuda", max_message_bytes=2**18) as p:
            child = Sender("freeze_mid_transfer")
            incoming = ask(child, p, ALL)
            await arrivals(incoming, 1)
            async with asyncio.timeout(3.5):
                with pytest.raises(TransferError, match="lost"):
                    await incoming.committed()
                await incoming.cancel()
            p.target.buffer.fill_(3)
            await until(lambda: psutil.Process(child.process.pid).status() == psutil.STATUS_STOPPED)
            child.process.send_signal(signal.SIGCONT)
            assert await child.hear() != "ok"
            assert p.target.buffer.eq(3).all()
            assert child.finish() == 0

    run(main())


@on_gpu
def test_another_block_than_was_digested_is_caught():
    async def main():
        async with pair("cuda") as p:
            child = Sender("corrupt_message:100")
            for block_id in range(100):
                incoming = ask(child, p, [block_id])
                with pytest.raises(TransferError, match="not those that were sent"):
                    await incoming.committed()
                await incoming.cancel()
                assert "not those that were sent" in await child.hear()
            incoming = ask(child, p, [7])
            await incoming.committed()
            assert child.finish() == 0

    run(main())


@on_gpu
def test_memory_that_cannot_be_opened_uses_another_transport():
    """A process cannot open memory that it has exported itself."""

    async def main():
        source = new_pool(1)
        async with pair("auto") as p:
            incoming = p.grant([4, 2])
            outgoing = p.sender(source).open(incoming.grant, [0, 1])
            all_ready(outgoing, 2)
            assert (await commit(outgoing)).transport == "shm"
            assert torch.equal(rows(p.target)[:, [4, 2]], rows(source)[:, :2])

    run(main())


@on_gpu
def test_memory_comes_back_when_the_last_reader_has_closed():
    async def main():
        child = Sender()
        async with pair("cuda") as p:
            await ask(child, p, [1]).committed()
            (memory,) = (connection._memory for connection in p.receiver.listeners._open["cuda"]._connections)
            assert child.finish() == 0
            deadline = time.monotonic() + 10
            while p.receiver.listeners._open["cuda"]._connections:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            with pytest.raises(OSError, match="cuIpcCloseMemHandle"):
                driver.close(memory._allocation, torch.device("cuda", 0))

    run(main())


@on_gpu
def test_malformed_claims_are_refused():
    blocks = new_pool(1).gpu_blocks
    claim = exported(blocks)
    for wrong in (b"", claim[:-1], claim + b"x"):
        with pytest.raises(ValueError, match="not a pool"):
            DeviceMemory(blocks, wrong)
    with pytest.raises(OSError, match="cuIpcOpenMemHandle"):
        DeviceMemory(blocks, bytes(len(claim)))


async def send_what_is_granted(epoch: int) -> None:
    """Read a grant; write `ok`, or the reason of the failure."""
    sender = kv_nodes.KVSender(new_pool(1), "p0", epoch, "cuda", "")
    print("begun", flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        grant = kv_nodes.transfer_pb2.Grant.FromString(bytes.fromhex(line))
        outgoing = sender.open(grant, list(range(grant.num_missing_blocks)))
        all_ready(outgoing, NUM_BLOCKS)
        try:
            await outgoing.commit(123, HASH, 5, 10.0)
            print("ok", flush=True)
        except TransferError as error:
            await outgoing.abort()
            print(error, flush=True)
    with suppress(TransferError):
        await sender.close()


if __name__ == "__main__":
    kv_nodes.Pool = OnGpu
    armed = [name for name in sys.argv[1:] if name != "epoch2"]
    for fault, _, times in (name.partition(":") for name in armed):
        FAULTS.arm(fault, int(times or 1))
    uvloop.run(send_what_is_granted(2 if "epoch2" in sys.argv else 1))
