"""The identity of KV blocks: a chained hash of full blocks, the same in every process.

`BlockHash_i = sha256(token ids ‖ BlockHash_{i-1})[:16]`. The model's fingerprint and the tenant's salt enter through
the parent of block 0, and so into every hash of the chain. The parent comes last, so most of a hash can be computed
before the parent is known.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from struct import Struct
from typing import NewType, overload

from baton.native import hash_chain
from baton.token_ids import to_bytes

BlockHash = NewType("BlockHash", bytes)

HASH_BYTES = hash_chain.DIGEST_BYTES
_SEED = b"baton.block.v2"
_EACH = f"{HASH_BYTES}s"
_chain = hash_chain.fastest()


@lru_cache(maxsize=1024)
def root_hash(model_fingerprint: str, cache_salt: bytes = b"") -> BlockHash:
    """Return the parent of a request's first block. Parts are length-prefixed, so different pairs cannot collide."""
    parts = (_SEED, model_fingerprint.encode(), cache_salt)
    return BlockHash(sha256(b"".join(len(p).to_bytes(4, "little") + p for p in parts)).digest()[:HASH_BYTES])


def stretched_root(root: BlockHash) -> BlockHash:
    """Return the parent of the first block of a request with stretched rotary embedding, whose KV is different."""
    return BlockHash(sha256(root + b"stretched").digest()[:HASH_BYTES])


class PackedHashes(Sequence[BlockHash]):
    """A sequence of hashes stored as one bytes object: a prefix lookup reads a dozen of a long prompt's thousands."""

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
        """Return a hash, or a slice; steps of slices are ignored."""
        if isinstance(at, slice):
            first, end, _ = at.indices(len(self))
            return PackedHashes(self.packed[first * HASH_BYTES : end * HASH_BYTES])
        start = range(len(self))[at] * HASH_BYTES
        return BlockHash(self.packed[start : start + HASH_BYTES])

    def __iter__(self) -> Iterator[BlockHash]:
        return iter(_unpacked(self.packed))


def packed_hashes(token_ids: Sequence[int], block_size: int, parent: BlockHash) -> PackedHashes:
    """Return the hashes of the full blocks of `token_ids`, in order; `parent` is the hash before the first of them."""
    return PackedHashes(_chain(parent, to_bytes(token_ids), block_size * 4))


def block_hashes(token_ids: Sequence[int], block_size: int, parent: BlockHash) -> list[BlockHash]:
    """Return the same hashes as a list, for callers that need every one of them."""
    return list(_unpacked(_chain(parent, to_bytes(token_ids), block_size * 4)))


def _unpacked(packed: bytes) -> tuple[BlockHash, ...]:
    return Struct(_EACH * (len(packed) // HASH_BYTES)).unpack(packed)  # half the time of `iter_unpack`
