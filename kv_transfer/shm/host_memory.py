"""A sender's host memory: the receiver reads blocks out of the sender's process."""

import itertools
import struct
from collections.abc import Callable

import xxhash

from kv_transfer.shm import process_memory
from kv_transfer.shm.process_memory import Runs
from kv_transfer.transport import Slot

MAX_RUNS = 2048  # per message; one of more runs is first gathered into a single run
NONCE_BYTES = 32
_PROOF = struct.Struct(f"<{NONCE_BYTES}sQ")
_RUN = struct.Struct("<QQ")


def proof(nonce: memoryview) -> bytes:
    """Return `Hello.memory`: the nonce and its address. A process that finds it there can read this one's memory.

    `nonce`: NONCE_BYTES, which must stay in place until the hello is answered.
    """
    return _PROOF.pack(bytes(nonce), process_memory.runs_of([nonce])[0][0])


def pack_runs(runs: Runs) -> bytes:
    """Encode runs of memory as the source of a frame."""
    return struct.pack(f"<{2 * len(runs)}Q", *itertools.chain.from_iterable(runs))


def unpack_runs(source: bytes) -> Runs:
    """Decode the source of a frame. Raises ValueError if it is malformed or names impossible addresses."""
    num_runs, rest = divmod(len(source), _RUN.size)
    if rest or not 0 < num_runs <= MAX_RUNS:
        raise ValueError(f"not a message: its source has {len(source)} bytes")
    runs = list(_RUN.iter_unpack(source))
    if any(length == 0 or address + length >= 2**64 for address, length in runs):
        raise ValueError("a message names memory that cannot be: an empty run, or one beyond the address space")
    return runs


class HostMemory:
    """See `kv_transfer.shm.incoming.SenderMemory`."""

    def __init__(self, pid: int, claim: bytes) -> None:
        """`claim` is the sender's `proof`. Raises OSError if it cannot be read there, ValueError if it is malformed."""
        if len(claim) != _PROOF.size:
            raise ValueError("not a proof")
        nonce, address = _PROOF.unpack(claim)
        self._pid = pid
        found = memoryview(bytearray(NONCE_BYTES))
        for _ in process_memory.read(pid, [(address, NONCE_BYTES)], [found]):
            pass
        if found != nonce:
            raise PermissionError("the prefill node's memory does not hold the nonce that it sent")

    def size_of(self, source: bytes) -> int:
        """See `SenderMemory`."""
        return sum(length for _, length in unpack_runs(source))

    def fetch(self, source: bytes, slot: Slot, is_over: Callable[[], bool]) -> int:
        """See `SenderMemory`."""
        state = xxhash.xxh3_64()
        for parts in process_memory.read(self._pid, unpack_runs(source), slot.views):
            for part in parts:
                state.update(part)
            if is_over():
                raise ConnectionAbortedError("closing")
        return state.intdigest()

    def close(self) -> None:
        """See `SenderMemory`."""
