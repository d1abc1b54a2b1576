"""A chain of hashes in one call where it has been compiled (`native`), else by hashlib, with the same result."""

import ctypes
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from baton.kv import native

DIGEST_BYTES = 16
_FEW_BLOCKS = 4  # which take longer by a call of C

Chain = Callable[[bytes, bytes, int], bytes]
"""(parent, blocks, bytes of a block): the digests of the whole blocks, one after the other."""


def hashed(parent: bytes, blocks: bytes, block_bytes: int) -> bytes:
    """By hashlib: the specification of all others. `digest = sha256(block ‖ digest before)[:16]`."""
    digests = []
    for start in range(0, len(blocks) - block_bytes + 1, block_bytes):
        parent = sha256(blocks[start : start + block_bytes] + parent).digest()[:DIGEST_BYTES]
        digests.append(parent)
    return b"".join(digests)


def load(path: Path, *, portably: bool = False) -> Chain:
    """The compiled one; without SHA instructions if `portably`. Raises OSError where there is none."""
    compute = ctypes.CDLL(str(path)).baton_hash_chain
    sizes = [ctypes.c_size_t] * 2
    compute.argtypes, compute.restype = [ctypes.c_char_p, ctypes.c_char_p, *sizes, ctypes.c_char_p, ctypes.c_int], None

    def chain(parent: bytes, blocks: bytes, block_bytes: int) -> bytes:
        num_blocks = len(blocks) // block_bytes
        if num_blocks < _FEW_BLOCKS or len(parent) != DIGEST_BYTES:
            return hashed(parent, blocks, block_bytes)
        digests = ctypes.create_string_buffer(num_blocks * DIGEST_BYTES)
        compute(parent, blocks, num_blocks, block_bytes, digests, portably)
        return digests.raw

    return chain


def fastest() -> Chain:
    """The fastest chain of this installation."""
    try:
        return load(native.library(native.HASH_CHAIN))
    except OSError:
        return hashed
