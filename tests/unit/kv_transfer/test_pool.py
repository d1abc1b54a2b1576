"""A pool as bytes: no copies, and no access outside of it."""

import pytest
import torch

from baton.errors import ConfigError
from baton.kv.layout import KVLayout
from kv_transfer.pool import KVPool

LAYOUT = KVLayout(
    num_layers=4, layers_per_group=2, block_size=4, num_kv_heads=2, head_dim=8, dtype="bfloat16", model_fingerprint=""
)
NUM_BLOCKS = 5


@pytest.fixture
def buffer() -> torch.Tensor:
    return torch.arange(LAYOUT.pool_bytes(NUM_BLOCKS), dtype=torch.int64).to(torch.uint8)


def test_a_view_is_the_tensor_of_that_block(buffer):
    pool = KVPool(buffer, LAYOUT, NUM_BLOCKS)
    shaped = buffer.view(torch.bfloat16).view(
        2, NUM_BLOCKS, 2, 2, 2, 4, 8
    )  # [group][block][layer][K,V][head][token][dim]
    pool.view(1, 3, 1)[:] = bytes(LAYOUT.block_group_bytes)
    assert not shaped[1, 3].view(torch.int16).any()
    assert shaped[1, 2].view(torch.int16).any()
    assert shaped[1, 4].view(torch.int16).any()
    assert shaped[0, 3].view(torch.int16).any()


def test_neighbours_are_one_view(buffer):
    pool = KVPool(buffer, LAYOUT, NUM_BLOCKS)
    views = pool.views(1, [3, 4, 0, 2])
    assert [view.nbytes // LAYOUT.block_group_bytes for view in views] == [2, 1, 1]
    assert views[0] == pool.view(1, 3, 2)


@pytest.mark.parametrize("where", [(0, -1, 1), (0, 5, 1), (0, 4, 2), (2, 0, 1), (-1, 0, 1)])
def test_nothing_outside_of_the_pool(buffer, where):
    with pytest.raises(IndexError):
        KVPool(buffer, LAYOUT, NUM_BLOCKS).view(*where)


def test_wrong_buffers_are_refused(buffer):
    with pytest.raises(ConfigError, match=r"needs \d+ bytes, not"):
        KVPool(buffer[:-1], LAYOUT, NUM_BLOCKS)
    for wrong in (buffer.view(torch.int16), buffer.view(-1, 2)[:, 0]):
        with pytest.raises(ConfigError, match="contiguous bytes"):
            KVPool(wrong, LAYOUT, NUM_BLOCKS)
