"""Staging memory: areas never overlap, requests are served in order, and bytes come out as they went in."""

import asyncio
import errno
import itertools
import mmap
import os
import random

import pytest
import xxhash

import kv_transfer.staging
from baton.errors import TransferError
from kv_transfer.staging import Area, Staging

PAGE = 4096


def run(main):
    async def bounded():
        async with asyncio.timeout(10):
            await main

    asyncio.run(bounded())


def test_areas_never_overlap_and_all_are_freed():
    async def main():
        random_, staging = random.Random(1), Staging(64 * PAGE)
        held: list[Area] = []
        for _ in range(2000):
            if held and random_.random() < 0.5:
                staging.give_back(held.pop(random_.randrange(len(held))))
            taken = staging.take(random_.randrange(1, 12 * PAGE))
            if not taken.done():
                taken.cancel()
                continue
            held.append(taken.result())
            spans = sorted(held)
            assert all(a.start + a.num_bytes <= b.start for a, b in itertools.pairwise(spans))
            assert sum(spans[-1]) <= 64 * PAGE
        for area in held:
            staging.give_back(area)
        assert staging.take(64 * PAGE).result() == Area(0, 64 * PAGE)
        staging.close()

    run(main())


def test_requests_are_served_in_order():
    async def main():
        staging = Staging(4 * PAGE)
        whole = staging.take(4 * PAGE).result()
        large, gone, small = staging.take(3 * PAGE), staging.take(PAGE), staging.take(PAGE)
        gone.cancel()
        assert [future.done() for future in (large, small)] == [False, False]
        staging.give_back(whole)
        assert (large.result(), small.result()) == (Area(0, 3 * PAGE), Area(3 * PAGE, PAGE))
        waiting, gone = staging.take(1), staging.take(1)
        gone.cancel()
        staging.close()
        for future in (waiting, staging.take(1)):
            with pytest.raises(TransferError, match="closed"):
                future.result()

    run(main())


def test_nothing_is_copied_once_it_is_closed():
    """The last report of the UCX process and its end may arrive together."""

    async def main():
        staging = Staging(4 * PAGE)
        area, descriptor = staging.take(PAGE).result(), staging.descriptor
        for _ in range(2):
            staging.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
        for thread in staging._threads._threads:
            await asyncio.to_thread(thread.join, 5)
            assert not thread.is_alive()
        for copy in (staging.fill, staging.empty):
            with pytest.raises(TransferError, match="closed"):
                copy(area, [memoryview(bytearray(PAGE))])

    run(main())


def test_an_area_that_can_never_fit_is_refused():
    async def main():
        with pytest.raises(TransferError, match="no message of 8193 bytes"):
            Staging(2 * PAGE).take(2 * PAGE + 1).result()

    run(main())


@pytest.mark.parametrize("sizes", [[5], [1000, 1, 70_000], [300_000, 600_000, 7]])
def test_bytes_are_gathered_spread_and_digested(sizes):
    async def main():
        staging = Staging(2**20)
        sources = [memoryview(random.Random(size).randbytes(size)) for size in sizes]
        area = staging.take(sum(sizes)).result()
        await staging.fill(area, sources)
        other = mmap.mmap(staging.descriptor, 2**20)  # as the other process sees it
        assert other[area.start : area.start + area.num_bytes] == b"".join(sources)
        targets = [memoryview(bytearray(size)) for size in reversed(sizes)]
        assert await staging.empty(area, targets) == xxhash.xxh3_64_intdigest(b"".join(sources))
        assert b"".join(targets) == b"".join(sources)
        staging.close()

    run(main())


def test_a_failed_start_leaves_no_descriptor_behind(monkeypatch):
    """This matters because the node retries again and again."""

    def mapped(descriptor, num_bytes):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(kv_transfer.staging, "mapped", mapped)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Cannot allocate"):
        Staging(2 * PAGE)
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_region_keeps_its_size():
    async def main():
        staging = Staging(2 * PAGE)
        for num_bytes in (PAGE, 3 * PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(staging.descriptor, num_bytes)
        staging.close()

    run(main())
