"""Reading a sender's memory: only with the announced proof, completely or not at all, and soon stopped."""

import os
import random

import pytest
import xxhash

from kv_transfer.shm.host_memory import NONCE_BYTES, HostMemory, pack_runs, proof
from kv_transfer.shm.process_memory import runs_of
from kv_transfer.transport import Peer, Slot

PIECE_BYTES = 2**20
CONTENT = random.Random(1).randbytes(3 * PIECE_BYTES)
SOURCE = pack_runs(runs_of([memoryview(CONTENT)[:5], memoryview(CONTENT)[5:]]))


def test_memory_without_the_announced_content_is_not_read():
    nonce = memoryview(bytearray(NONCE_BYTES))
    claim = proof(nonce)
    HostMemory(os.getpid(), claim)
    with pytest.raises(ValueError, match="not a proof"):
        HostMemory(os.getpid(), claim[:-1])
    nonce[-1] = 1
    with pytest.raises(PermissionError):
        HostMemory(os.getpid(), claim)


@pytest.mark.parametrize("num_pieces", [1, 3])
def test_a_copy_that_is_stopped_between_pieces_reports_no_digest(num_pieces):
    nonce = memoryview(bytearray(NONCE_BYTES))
    memory, target, asked = HostMemory(os.getpid(), proof(nonce)), bytearray(len(CONTENT)), []

    def is_over():
        asked.append(True)
        return len(asked) == num_pieces < 3

    slot = Slot(Peer("p0", 1), [memoryview(target)])
    assert memory.size_of(SOURCE) == len(CONTENT)
    if num_pieces < 3:
        with pytest.raises(ConnectionAbortedError):
            memory.fetch(SOURCE, slot, is_over)
    else:
        assert memory.fetch(SOURCE, slot, is_over) == xxhash.xxh3_64_intdigest(CONTENT)
    num_bytes = num_pieces * PIECE_BYTES
    assert target == CONTENT[:num_bytes] + bytes(len(CONTENT) - num_bytes)
