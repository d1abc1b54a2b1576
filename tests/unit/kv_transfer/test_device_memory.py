"""What a peer may claim of a pool on a GPU, without one: the driver is a stand-in."""

import struct

import pytest
import torch

from baton.errors import ConfigError
from kv_transfer.choose import choose
from kv_transfer.cuda import driver
from kv_transfer.cuda.device_memory import DeviceMemory, pack_places
from kv_transfer.faults import FAULTS

NUM_BLOCKS = 512


class Opened:
    """A stand-in for the driver that opens a pool of four blocks."""

    def __init__(self, monkeypatch, num_bytes: int) -> None:
        self.closed = 0
        monkeypatch.setattr(driver, "open_handle", lambda handle, device: driver.Allocation(1 << 40, num_bytes))
        monkeypatch.setattr(driver, "close", self._close)

    def _close(self, allocation, device):
        self.closed += 1


class Blocks:
    block_bytes = 100
    device = torch.device("cuda", 0)


def claim_of(num_places: int, offset: int = 0) -> bytes:
    return struct.pack("<64sQQ", bytes(64), offset, num_places)


def test_a_pool_larger_than_its_allocation_is_refused(monkeypatch):
    opened = Opened(monkeypatch, 400)
    for claim in (claim_of(5), claim_of(4, offset=1), claim_of(2**63)):
        with pytest.raises(PermissionError, match="not as large"):
            DeviceMemory(Blocks, claim)
    assert opened.closed == 3
    DeviceMemory(Blocks, claim_of(3, offset=100)).close()
    assert opened.closed == 4


def test_a_message_names_blocks_of_the_pool_alone(monkeypatch):
    Opened(monkeypatch, 400)
    memory = DeviceMemory(Blocks, claim_of(4))
    assert memory.size_of(pack_places([0, 3, 3])) == 300
    for source in (pack_places([4]), pack_places([0, 2**32 - 1]), pack_places([1])[:3]):
        with pytest.raises(ValueError, match="not in the pool"):
            memory.size_of(source)


def test_only_a_pool_on_a_gpu_can_use_it():
    with pytest.raises(ConfigError, match="host memory"):
        choose("cuda")
    assert choose("cuda", on_gpu=True) == ("cuda",)
    assert choose("auto", on_gpu=True) == ("cuda", "shm", "ucx", "tcp")


def test_the_misplaced_block_fault_uses_another_block_of_the_layer_group():
    places, seen = [3, NUM_BLOCKS + 5], set()
    for _ in range(200):
        wrong = FAULTS.misplace(places, NUM_BLOCKS)
        assert sum(a != b for a, b in zip(wrong, places, strict=True)) == 1
        assert [place // NUM_BLOCKS for place in wrong] == [0, 1]
        seen.add(tuple(wrong))
    assert len(seen) > 100
