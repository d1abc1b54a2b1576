"""Peers that stop moving are noticed, slow ones and our own absence are not held against them."""

import asyncio
from collections.abc import Coroutine

import pytest

from kv_transfer.stall import Heartbeat, StallWatch
from tests.virtual_loop import VirtualLoop


def run(main: Coroutine) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(main)


def test_only_what_is_pending_and_does_not_move_stalls():
    async def main():
        stalled = asyncio.Event()
        watch = StallWatch(0.4, stalled.set)
        await asyncio.sleep(0.5)
        assert not stalled.is_set()  # nothing pending
        watch.started()
        for _ in range(10):
            await asyncio.sleep(0.05)
            watch.moved()
        assert not stalled.is_set()
        assert await stalls_after_s(watch, stalled) > 0.25

    run(main())


async def stalls_after_s(watch: StallWatch, stalled: asyncio.Event) -> float:
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with asyncio.timeout(5):
        await stalled.wait()
    watch.close()
    return loop.time() - began_s


def test_who_was_silent_before_is_given_longer():
    """A peer on a busy host, and one whose bytes never were late."""

    async def main():
        events = [asyncio.Event(), asyncio.Event()]
        slow, quick = (StallWatch(0.8, event.set) for event in events)
        slow.started()
        quick.started()
        for _ in range(10):
            await asyncio.sleep(0.05)
            quick.moved()
        slow.moved()
        slow_s, quick_s = await asyncio.gather(stalls_after_s(slow, events[0]), stalls_after_s(quick, events[1]))
        assert (quick_s, slow_s) == (pytest.approx(0.73 * 0.8), pytest.approx(0.8))

    run(main())


def test_what_is_finished_or_closed_does_not_stall():
    async def main():
        stalled = asyncio.Event()
        watch, closed = StallWatch(0.05, stalled.set), StallWatch(0.05, stalled.set)
        watch.started()
        watch.started()
        watch.finished()
        watch.finished()
        closed.started()
        closed.close()
        await asyncio.sleep(0.15)
        assert not stalled.is_set()

    run(main())


def test_a_loop_that_was_away_gives_the_peer_another_chance():
    async def main():
        stalled = asyncio.Event()
        watch = StallWatch(0.2, stalled.set)
        watch.started()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.stand_still(0.8)
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert not stalled.is_set()
        async with asyncio.timeout(5):
            await stalled.wait()

    run(main())


def test_a_heart_beats_until_it_is_closed():
    async def main():
        beats: list[int] = []
        third = asyncio.Event()

        def beat() -> None:
            beats.append(1)
            if len(beats) == 3:
                heart.close()
                third.set()

        heart = Heartbeat(0.01, beat)
        async with asyncio.timeout(5):
            await third.wait()
        await asyncio.sleep(0.05)
        assert len(beats) == 3

    run(main())
