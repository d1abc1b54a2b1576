"""The arithmetic of pools, and the error for two different layouts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import LayoutMismatch
from baton.kv.layout import KVLayout
from baton.v1 import types_pb2


def layout(**changes):
    fields = {
        "num_layers": 8,
        "layers_per_group": 2,
        "block_size": 16,
        "num_kv_heads": 2,
        "head_dim": 64,
        "dtype": "bfloat16",
        "model_fingerprint": "ab",
    }
    return KVLayout(**fields | changes)


@given(st.integers(1, 20), st.integers(1, 4), st.integers(1, 4))
def test_blocks_tile_the_pool(num_blocks, num_groups, layers_per_group):
    kv = layout(num_layers=num_groups * layers_per_group, layers_per_group=layers_per_group)
    offsets = [kv.offset(num_blocks, g, b) for g in range(num_groups) for b in range(num_blocks)]
    assert offsets == list(range(0, kv.pool_bytes(num_blocks), kv.block_group_bytes))


def test_a_block_has_the_bytes_of_keys_and_values_of_every_head_and_token():
    assert layout().block_group_bytes == 2 * 2 * 2 * 16 * 64 * 2
    assert layout(dtype="float32").block_bytes == 2 * layout().block_bytes
    assert 2 * layout(num_planes=1).block_bytes == layout().block_bytes


def test_a_mismatch_names_fields_and_both_sides():
    with pytest.raises(LayoutMismatch) as error:
        layout().check_equal(layout(block_size=32, dtype="float16", num_planes=1), mine="prefill-0", theirs="decode-1")
    assert "block_size: 16 on prefill-0, 32 on decode-1" in error.value.message
    assert "dtype: bfloat16 on prefill-0, float16 on decode-1" in error.value.message
    assert "num_planes: 2 on prefill-0, 1 on decode-1" in error.value.message
    assert "head_dim" not in error.value.message


def test_a_layout_survives_its_protobuf_form():
    for sent in (layout(), layout(num_planes=1)):
        wire = types_pb2.KVLayout.FromString(sent.to_proto().SerializeToString())
        assert KVLayout.from_proto(wire) == sent
