import msgspec
import pytest
import torch

from baton.errors import ConfigError
from baton.kv.layout import KVLayout
from engine.kv_cache import KVCache

LAYOUT = KVLayout(
    num_layers=6, layers_per_group=2, block_size=4, num_kv_heads=2, head_dim=8, dtype="bfloat16", model_fingerprint="ab"
)


@pytest.mark.parametrize("num_planes", [1, 2])
def test_views_match_the_layout_of_the_pool(num_planes):
    layout = msgspec.structs.replace(LAYOUT, num_planes=num_planes)
    cache = KVCache(layout, 5, torch.device("cpu"))
    assert cache.pool.dtype == torch.uint8
    assert cache.pool.numel() == layout.pool_bytes(5)
    assert not cache.pool.any()
    per_layer = layout.block_group_bytes // layout.layers_per_group
    for layer, view in enumerate(cache.layers):
        assert view.shape == (5, num_planes, 2, 4, 8)
        for block in range(5):
            offset = layout.offset(5, layer // 2, block) + layer % 2 * per_layer
            assert view[block].is_contiguous()
            assert view[block].data_ptr() == cache.pool.data_ptr() + offset


def test_layers_and_blocks_do_not_overlap():
    cache = KVCache(LAYOUT, 3, torch.device("cpu"))
    for layer, view in enumerate(cache.layers):
        for block in range(3):
            assert not view[block].any()
            view[block] = layer * 10 + block + 1
    for layer, view in enumerate(cache.layers):
        assert [view[block].unique().tolist() for block in range(3)] == [[layer * 10 + block + 1] for block in range(3)]


def test_a_pool_that_does_not_fit_in_memory_is_a_clear_error():
    with pytest.raises(ConfigError, match=r"no memory for a KV pool of \d+ MiB: set --kv-memory to less"):
        KVCache(LAYOUT, 1 << 40, torch.device("cpu"))


def test_the_first_blocks_of_a_large_pool_are_resident_at_once(monkeypatch):
    populated = []
    monkeypatch.setattr("engine.kv_cache.populate", lambda memory: populated.append(memory))
    cache = KVCache(LAYOUT, 4 << 20, torch.device("cpu"))
    begins = [cache.pool.data_ptr() + LAYOUT.offset(4 << 20, group, 0) for group in range(3)]
    assert [memory.data_ptr() for memory in populated] == begins
    assert sum(len(memory) for memory in populated) <= 256 << 20 < cache.pool.numel()
