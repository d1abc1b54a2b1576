"""A staged pool: loans and landings, the bounds on both, and when a landing has settled."""

import asyncio
import threading

import pytest
import torch

from baton.errors import ConfigError, TransferError
from baton.kv.layout import KVLayout
from kv_transfer.digest import Digester, digest
from kv_transfer.pool import KVPool
from kv_transfer.pools import pool_of
from kv_transfer.staged_pool import StagedPool

LAYOUT = KVLayout(
    num_layers=4, layers_per_group=2, block_size=4, num_kv_heads=2, head_dim=8, dtype="bfloat16", model_fingerprint=""
)
NUM_BLOCKS = 8
SIZE = LAYOUT.block_group_bytes


@pytest.fixture
def buffer() -> torch.Tensor:
    return torch.randint(0, 256, (LAYOUT.pool_bytes(NUM_BLOCKS),), dtype=torch.uint8)


@pytest.fixture
def make(buffer):
    made = []

    def new(**limits: int) -> StagedPool:
        made.append(StagedPool(buffer, LAYOUT, NUM_BLOCKS, **limits))
        return made[-1]

    yield new
    for pool in made:
        pool.close()


@pytest.fixture
def digester():
    made = Digester()
    yield made
    made.close()


def run(main) -> None:
    asyncio.run(asyncio.wait_for(main, 10))


@pytest.mark.parametrize("block_ids", [[3], [2, 3, 4], [5, 0, 1, 7]])
def test_a_loan_is_a_copy_of_the_blocks_that_does_not_change(make, buffer, block_ids):
    async def main():
        pool = make()
        groups = range(2 if len(block_ids) == 4 else 1)
        host = KVPool(buffer, LAYOUT, NUM_BLOCKS)
        expected = b"".join(view for group in groups for view in host.views(group, block_ids))
        loan = pool.lend(groups, block_ids)
        assert loan.num_bytes == len(expected)
        views = await loan.views()
        buffer.zero_()
        assert b"".join(views) == expected
        loan.end()

    run(main())


def test_no_more_is_lent_than_there_is_room_for(make):
    async def main():
        pool, called = make(max_lent_bytes=3 * SIZE), []
        loans = [pool.lend(range(0, 1), [0, 1]), pool.lend(range(0, 1), [2])]
        assert pool.lend(range(0, 1), [3]) is None
        pool.when_room(lambda: called.append(pool.lend(range(0, 1), [3, 4])))
        assert called == []
        loans[0].end()
        assert called[0] is not None
        assert pool.lend(range(0, 1), [5]) is None
        loans[1].end()
        called[0].end()
        assert len(called) == 1
        large = pool.lend(range(1, 2), list(range(NUM_BLOCKS)))  # more than all of it: alone
        assert pool.lend(range(0, 1), [0]) is None
        large.end()

    run(main())


def test_a_settled_landing_has_changed_its_own_blocks_only(make, buffer, digester):
    async def main():
        pool, before = make(), buffer.clone()
        data = bytes(range(256)) * (4 * SIZE // 256)
        landing = pool.land(range(2), [5, 2])
        landing.views[0][:] = data
        assert torch.equal(buffer, before)
        assert await landing.settle(digester, None) == digest([memoryview(data)])
        host = KVPool(buffer, LAYOUT, NUM_BLOCKS)
        assert b"".join(bytes(host.view(group, block, 1)) for group in range(2) for block in (5, 2)) == data
        after = buffer.clone()
        for group in range(2):
            for block in (5, 2):
                part = slice(LAYOUT.offset(NUM_BLOCKS, group, block), LAYOUT.offset(NUM_BLOCKS, group, block + 1))
                after[part] = before[part]
        assert torch.equal(after, before)
        run_ = pool.land(range(1), [1, 2, 3])
        run_.views[0][:] = data[: 3 * SIZE]
        assert await run_.settle(digester, 17) == 17  # the transport knew it
        assert host.view(0, 1, 3) == data[: 3 * SIZE]

    run(main())


def test_a_landing_has_not_settled_before_its_copy_is_over(make, digester, monkeypatch):
    async def main():
        pool, go_on = make(), threading.Event()
        copy = pool.blocks._copy_in
        monkeypatch.setattr(pool.blocks, "_copy_in", lambda *args: go_on.wait(5) and copy(*args))
        landing = pool.land(range(1), [0])
        settled = landing.settle(digester, None)
        await asyncio.sleep(0.02)
        assert not settled.done()
        assert pool._landing_bytes == SIZE  # and its memory is still in use
        go_on.set()
        await settled
        assert pool._landing_bytes == 0

    run(main())


def test_landings_are_bounded(make):
    pool = make(max_landing_bytes=2 * SIZE)
    landing = pool.land(range(1), [0, 1])
    assert pool.land(range(1), [2]) is None
    landing.drop()
    assert pool.land(range(1), [2]) is not None


def test_copies_that_fail_are_errors_of_the_transfer(make, digester, monkeypatch):
    async def main():
        pool = make()

        def fail(*args):
            raise RuntimeError("device-side assert triggered")

        monkeypatch.setattr(pool.blocks, "_copy_in", fail)
        monkeypatch.setattr(pool.blocks, "_copy_out", fail)
        with pytest.raises(TransferError, match="device-side assert"):
            await pool.land(range(1), [0]).settle(digester, None)
        loan = pool.lend(range(0, 1), [0])
        with pytest.raises(TransferError, match="device-side assert"):
            await loan.views()
        loan.end()
        assert (pool._lent_bytes, pool._landing_bytes) == (0, 0)

    run(main())


def test_without_staging_memory_a_message_is_not_transferred(make, digester, monkeypatch):
    async def main():
        pool = make()
        with monkeypatch.context() as scarce:
            scarce.setattr(torch, "empty", fail)
            assert pool.land(range(1), [0]) is None
            loan = pool.lend(range(0, 1), [0])
            with pytest.raises(TransferError, match="no staging memory"):
                await loan.views()
            loan.end()
        assert (pool._lent_bytes, pool._landing_bytes) == (0, 0)
        assert await pool.land(range(1), [0]).settle(digester, 3) == 3

    def fail(*args, **how):
        raise RuntimeError("CUDA error: out of memory")

    run(main())


def test_nothing_outside_of_the_pool(make):
    for where in [(range(1), [0, -1]), (range(1), [0, NUM_BLOCKS]), (range(1, 3), [0]), (range(-1, 1), [0])]:
        for use in (make().land, make().lend):
            with pytest.raises(IndexError):
                use(*where)


def test_host_memory_is_not_staged_and_wrong_buffers_are_refused(buffer):
    assert isinstance(pool_of(buffer, LAYOUT, NUM_BLOCKS), KVPool)
    with pytest.raises(ConfigError, match="contiguous bytes"):
        StagedPool(buffer.view(torch.int16), LAYOUT, NUM_BLOCKS)
    with pytest.raises(ConfigError, match="needs a buffer in host memory, not on meta"):
        KVPool(buffer.to("meta"), LAYOUT, NUM_BLOCKS)
