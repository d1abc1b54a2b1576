"""Memory in huge pages is zero, and allocations are aligned and do not overlap."""

import os
from pathlib import Path

import torch

from kernels.cpu.memory import Arena, huge_pages, populate


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_huge_pages_are_zero_and_of_the_size_asked_for():
    for num_bytes in (0, 1, 5000, 3 << 20):
        memory = huge_pages(num_bytes)
        assert (memory.dtype, len(memory)) == (torch.uint8, num_bytes)
        assert not memory.any()


def test_populated_memory_is_resident_before_it_is_written_to():
    memory = huge_pages(64 << 20)
    memory[7] = 3
    before = resident_bytes()
    populate(memory[5 : 48 << 20])
    assert 40 << 20 < resident_bytes() - before < 60 << 20
    assert memory[7] == 3  # also where it was real
    assert memory.count_nonzero() == 1
    populate(memory[:0])


def test_allocations_of_an_arena_are_aligned_and_do_not_overlap():
    arena = Arena()
    taken = [arena.take(num_bytes) for num_bytes in (1, 64, 1000, 0, 65 << 20, 7)]  # one more than a piece holds
    for i, memory in enumerate(taken):
        memory.fill_(i + 1)
    assert [len(memory) for memory in taken] == [1, 64, 1000, 0, 65 << 20, 7]
    assert all(memory.data_ptr() % 64 == 0 for memory in taken if len(memory))
    assert all(bool((memory == i + 1).all()) for i, memory in enumerate(taken))


def test_small_allocations_share_a_piece():
    arena = Arena()
    first, second = arena.take(100), arena.take(100)
    assert second.data_ptr() - first.data_ptr() == 128
