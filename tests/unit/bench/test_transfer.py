"""The transfer benchmark moves real bytes between real processes, in every way."""

import gc
import weakref

import pytest
from rich.progress import Progress

from bench import transfer
from bench._transfer import ways
from bench._transfer.nodes import settle
from bench._transfer.ways import Round


def test_a_row_for_each_size_and_a_column_for_each_way(monkeypatch):
    """Leave out UCX, which takes seconds to start."""
    monkeypatch.setattr(transfer, "why_no_perftest", lambda: "no ucx_perftest here")
    monkeypatch.setattr(transfer, "why_unavailable", lambda: "no ucxx here")
    lines = list(transfer.report(2**20, 1, [2**16, 2**20], "cpu", Progress(disable=True)))
    assert lines[2:4] == ["no ucx_perftest here", "no ucxx here"]
    assert lines[4] == "GB/s (CPU s/GB) | memcpy | socket | shm | tcp | shm/memcpy | tcp/socket"
    assert [line.partition(" | ")[0] for line in lines[6:]] == ["64 KiB", "1024 KiB"]
    assert all(float(cell.partition(" ")[0]) > 0 for line in lines[6:] for cell in line.split(" | ")[1:])


def test_ratios_are_of_speeds():
    best = {"memcpy": Round(1.0, 1.0), "socket": Round(2.0, 2.0), "shm": Round(2.0, 0.5), "tcp": Round(1.0, 4.0)}
    assert transfer.line(2**20, 10**9, best) == (
        "1024 KiB | 1.00 (1.00) | 0.50 (2.00) | 0.50 (0.50) | 1.00 (4.00) | 0.50 | 2.00"
    )


@pytest.mark.skipif(bool(ways.why_no_perftest()), reason=ways.why_no_perftest())
def test_the_output_of_ucx_perftest_is_parsed():
    found = ways.ucx_perftest("ucx_perftest shm", 2**20, 2**18)
    assert found.wall_s > 0
    assert found.cpu_s > 0


def test_an_earlier_transfers_memory_is_freed_before_the_next_one():
    class Pool:
        pass

    pool = Pool()
    pool.itself = pool
    left = weakref.ref(pool)
    del pool
    try:
        settle()
    finally:
        gc.unfreeze()
    assert left() is None
