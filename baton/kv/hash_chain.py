"""A chain of hashes in one call where it has been compiled, else by hashlib, with the same result.

    python -m baton.kv.hash_chain

compiles it, at installation. It needs a C++17 compiler (`CXX`, by default g++) and is never compiled otherwise: whoever
hashes should not have to wait for that. The library's name carries a hash of its source.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

DIGEST_BYTES = 16
SOURCE = Path(__file__).with_suffix(".cpp")
FOLDER = SOURCE.parent / "_build"
_FEW_BLOCKS = 4  # which take longer by a call of C
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=default")

Chain = Callable[[bytes, bytes, int], bytes]
"""(parent, blocks, bytes of a block): the digests of the whole blocks, one after the other."""


def hashed(parent: bytes, blocks: bytes, block_bytes: int) -> bytes:
    """By hashlib: the specification of all others. `digest = sha256(digest before ‖ block)[:16]`."""
    digests = []
    for start in range(0, len(blocks) - block_bytes + 1, block_bytes):
        parent = sha256(parent + blocks[start : start + block_bytes]).digest()[:DIGEST_BYTES]
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
    """What this installation has."""
    try:
        return load(library())
    except OSError:
        return hashed


def library(folder: Path = FOLDER) -> Path:
    """Where the compiled one is, if it is there."""
    source = sha256(repr(_FLAGS).encode() + SOURCE.read_bytes()).hexdigest()
    return folder / f"hash_chain-{source[:16]}.so"


def build(folder: Path = FOLDER) -> Path:
    """Compile it into `folder`. Raises OSError where the folder, or a compiler, is missing, and CalledProcessError."""
    target = library(folder)
    folder.mkdir(parents=True, exist_ok=True)
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise FileNotFoundError("no C++ compiler (set CXX, or install g++)")
    partial = target.with_suffix(f".{os.getpid()}")
    subprocess.run([compiler, *_FLAGS, str(SOURCE), "-o", str(partial)], check=True)
    partial.replace(target)
    return target


def main() -> int:
    """Compile it, and say where it is."""
    try:
        sys.stdout.write(f"{build()}\n")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"prompts are hashed by hashlib: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
