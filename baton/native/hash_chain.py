"""Computes a chain of block hashes: in one call of the compiled version (`build`), or equivalently by hashlib."""

import ctypes
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from baton.native import build

DIGEST_BYTES = 16
_FEW_BLOCKS = 4  # for fewer blocks a call of C is slower

Chain = Callable[[bytes, bytes, int], bytes]
"""(parent, blocks, bytes per block) -> the digests of all full blocks, concatenated."""


def hashed(parent: bytes, blocks: bytes, block_bytes: int) -> bytes:
    """Compute the chain by hashlib, the specification: `digest = sha256(block ‖ last digest)[:16]`."""
    digests = []
    for start in range(0, len(blocks) - block_bytes + 1, block_bytes):
        parent = sha256(blocks[start : start + block_bytes] + parent).digest()[:DIGEST_BYTES]
        digests.append(parent)
    return b"".join(digests)


def load(path: Path, *, portably: bool = False) -> Chain:
    """Load the compiled version at `path`. `portably`: use no SHA instructions. Raises OSError if it is missing."""
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
    """Return the compiled version if it is installed, else `hashed`."""
    try:
        return load(build.library(build.HASH_CHAIN))
    except OSError:
        return hashed
