"""The identity of KV blocks: a chained hash of full blocks, the same in every process.

`BlockHash_i = sha256(token ids ‖ BlockHash_{i-1})[:16]`; extras (model, tenant salt) enter through the parent of
block 0, so they are part of every hash of the chain. The parent comes last: most of a hash need not wait for it.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from struct import Struct
from typing import NewType, overload

from baton.kv import hash_chain
from baton.token_ids import to_bytes

BlockHash = NewType("BlockHash", bytes)

HASH_BYTES = hash_chain.DIGEST_BYTES
_SEED = b"baton.block.v2"
_EACH = f"{HASH_BYTES}s"
_chain = hash_chain.fastest()


@lru_cache(maxsize=1024)
def root_hash(model_fingerprint: str, cache_salt: bytes = b"") -> BlockHash:
    """The parent of a request's first block. Each part is length-prefixed, so no two different pairs collide."""
    parts = (_SEED, model_fingerprint.encode(), cache_salt)
    return BlockHash(sha256(b"".join(len(p).to_bytes(4, "little") + p for p in parts)).digest()[:HASH_BYTES])


def stretched_root(root: BlockHash) -> BlockHash:
    """The parent of the first block of a request whose rotary embedding is stretched: its KV is another."""
    return BlockHash(sha256(root + b"stretched").digest()[:HASH_BYTES])


class PackedHashes(Sequence[BlockHash]):
    """Hashes one behind the other in memory: of a long prompt's thousands a lookup sees a dozen."""

    __slots__ = ("packed",)

    def __init__(self, packed: bytes = b"") -> None:
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed) // HASH_BYTES

    @overload
    def __getitem__(self, at: int) -> BlockHash: ...

    @overload
    def __getitem__(self, at: slice) -> "PackedHashes": ...

    def __getitem__(self, at: "int | slice") -> "BlockHash | PackedHashes":
        """Slices have no steps."""
        if isinstance(at, slice):
            first, end, _ = at.indices(len(self))
            return PackedHashes(self.packed[first * HASH_BYTES : end * HASH_BYTES])
        start = range(len(self))[at] * HASH_BYTES
        return BlockHash(self.packed[start : start + HASH_BYTES])

    def __iter__(self) -> Iterator[BlockHash]:
        return iter(_unpacked(self.packed))


def packed_hashes(token_ids: Sequence[int], block_size: int, parent: BlockHash) -> PackedHashes:
    """Hashes of the full blocks of `token_ids`, in order; `parent` is the hash before the first of them."""
    return PackedHashes(_chain(parent, to_bytes(token_ids), block_size * 4))


def block_hashes(token_ids: Sequence[int], block_size: int, parent: BlockHash) -> list[BlockHash]:
    """The same as a list, for who looks at each of them."""
    return list(_unpacked(_chain(parent, to_bytes(token_ids), block_size * 4)))


def _unpacked(packed: bytes) -> tuple[BlockHash, ...]:
    return Struct(_EACH * (len(packed) // HASH_BYTES)).unpack(packed)  # half the time of `iter_unpack`
