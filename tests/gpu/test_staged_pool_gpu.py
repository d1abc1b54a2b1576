"""KV blocks between a GPU and the host: what is lent and what lands is right beside steps that keep the GPU busy."""

import asyncio

import pytest
import torch

from baton.kv.layout import KVLayout
from kv_transfer.digest import Digester, digest
from kv_transfer.pools import pool_of
from kv_transfer.staged_pool import StagedPool

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
LAYOUT = KVLayout(
    num_layers=8,
    layers_per_group=2,
    block_size=16,
    num_kv_heads=8,
    head_dim=128,
    dtype="bfloat16",
    model_fingerprint="",
)
NUM_BLOCKS = 256
SIZE = LAYOUT.block_group_bytes


@pytest.fixture
def buffer():
    return torch.randint(0, 256, (LAYOUT.pool_bytes(NUM_BLOCKS),), dtype=torch.uint8, device="cuda")


@pytest.fixture
def pool(buffer):
    made = pool_of(buffer, LAYOUT, NUM_BLOCKS)
    assert isinstance(made, StagedPool)
    yield made
    made.close()


def keep_busy(num_products: int = 200) -> None:
    """Some ten milliseconds on the stream of the steps."""
    x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    for _ in range(num_products):
        x = (x @ x).clamp_(-1, 1)


@pytest.mark.parametrize("block_ids", [[7], list(range(10, 42)), [5, 200, 6, 9, 3, 255, 0, 17]])
def test_what_is_lent_is_the_blocks(pool, buffer, block_ids):
    async def main():
        expected = buffer.view(LAYOUT.num_layer_groups, NUM_BLOCKS, SIZE)[1:3, block_ids].cpu().numpy().tobytes()
        torch.cuda.synchronize()
        keep_busy()
        loan = pool.lend(range(1, 3), block_ids)
        assert b"".join(await loan.views()) == expected
        loan.end()

    asyncio.run(main())


def test_a_copy_does_not_wait_for_the_step_that_runs(pool):
    async def main():
        await pool.lend(range(1), [1, 3]).views()  # warm
        torch.cuda.synchronize()
        keep_busy(2000)
        over = torch.cuda.Event()
        over.record()
        await pool.lend(range(1), [1, 3]).views()
        assert not over.query()
        torch.cuda.synchronize()

    asyncio.run(main())


def test_what_has_landed_is_seen_by_what_is_launched_next(pool, buffer):
    async def main():
        digester = Digester()
        for round_ in range(20):
            data = torch.randint(0, 256, (16 * SIZE,), dtype=torch.uint8)
            block_ids = torch.randperm(NUM_BLOCKS)[:16] if round_ % 2 else torch.arange(round_, round_ + 16)
            landing = pool.land(range(1, 2), block_ids.tolist())
            landing.views[0][:] = data.numpy().data
            keep_busy(5)
            assert await landing.settle(digester, None) == digest([data.numpy().data])
            blocks = buffer.view(LAYOUT.num_layer_groups, NUM_BLOCKS, SIZE)[1]
            seen = blocks[block_ids.cuda()]  # on the stream of the steps
            assert torch.equal(seen.view(-1).cpu(), data)
        digester.close()

    asyncio.run(main())
