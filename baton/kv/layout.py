"""The layout of KV blocks in a pool, which engine and KV transfer share.

The pool is one allocation, `[layer_group][block][layer][plane][kv_head][token][dim]`, so one block of one layer group
is one contiguous run of bytes, and consecutive blocks of a group are adjacent in memory. There are two planes, keys and
values, or a single one if both are the same vector (latent attention).
"""

import msgspec

from baton.errors import LayoutMismatch
from baton.v1 import types_pb2

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class KVLayout(msgspec.Struct, frozen=True, kw_only=True):
    """The shape of a pool, except for its number of blocks. Only nodes with equal layouts exchange blocks."""

    num_layers: int
    layers_per_group: int  # divides num_layers
    block_size: int  # tokens
    num_kv_heads: int
    head_dim: int
    num_planes: int = 2
    dtype: str  # a key of DTYPE_BYTES
    model_fingerprint: str  # hex; of config and weights

    @property
    def num_layer_groups(self) -> int:
        """The number of layer groups: a transfer can begin when the first of them is computed."""
        return self.num_layers // self.layers_per_group

    @property
    def block_group_bytes(self) -> int:
        """Bytes of one block of one layer group, which is one contiguous run."""
        per_token = self.num_planes * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]
        return self.layers_per_group * self.block_size * per_token

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers."""
        return self.num_layer_groups * self.block_group_bytes

    def pool_bytes(self, num_blocks: int) -> int:
        """Bytes of a pool of `num_blocks` blocks."""
        return num_blocks * self.block_bytes

    def offset(self, num_blocks: int, layer_group: int, block_id: int) -> int:
        """Byte offset of one block of one layer group in a pool of `num_blocks` blocks."""
        return (layer_group * num_blocks + block_id) * self.block_group_bytes

    def check_equal(self, other: "KVLayout", *, mine: str, theirs: str) -> None:
        """Raise LayoutMismatch, naming every field that differs with both sides' values."""
        differing = [
            f"{name}: {getattr(self, name)} on {mine}, {getattr(other, name)} on {theirs}"
            for name in self.__struct_fields__
            if getattr(self, name) != getattr(other, name)
        ]
        if differing:
            raise LayoutMismatch("KV layouts differ, so no blocks can be exchanged: " + "; ".join(differing))

    def to_proto(self) -> types_pb2.KVLayout:
        """Convert to the wire's message."""
        return types_pb2.KVLayout(**{name: getattr(self, name) for name in self.__struct_fields__})

    @classmethod
    def from_proto(cls, proto: types_pb2.KVLayout) -> "KVLayout":
        """Convert from the wire's message."""
        return cls(**{name: getattr(proto, name) for name in cls.__struct_fields__})
