"""Peers that make no progress are detected; slow peers, and pauses of this process, are tolerated."""

import asyncio

import pytest

from kv_transfer.stall import LEAST_TICKS, MOST_TICKS, TICK_S, Heartbeat, StallWatch
from tests.virtual_clock import Clock, run

BEAT_S = 0.25


class Watched:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.stalled_at: float | None = None
        self.watch = StallWatch("a peer is silent", self._stall)

    def _stall(self) -> None:
        assert self.stalled_at is None
        self.stalled_at = self.clock.now

    async def stalls_after_s(self) -> float:
        began = self.clock.now
        while self.stalled_at is None:  # noqa: ASYNC110
            await asyncio.sleep(TICK_S)
        return self.stalled_at - began

    async def beats(self, silence_s: float, times: int) -> None:
        for _ in range(times):
            await asyncio.sleep(silence_s)
            self.watch.moved()
        assert self.stalled_at is None


def test_only_pending_operations_without_progress_stall(caplog):
    async def main(clock):
        peer = Watched(clock)
        await asyncio.sleep(60)
        assert peer.stalled_at is None  # nothing pending
        peer.watch.started()
        await peer.beats(BEAT_S, 100)
        assert await peer.stalls_after_s() == pytest.approx(LEAST_TICKS * TICK_S, abs=TICK_S)
        await asyncio.sleep(60)  # once

    run(main)
    assert "a peer is silent for 1.1 s (before, 0.2 s at most)" in caplog.text


def test_time_counts_once_for_operations_that_follow_one_another():
    async def main(clock):
        peer = Watched(clock)
        peer.watch.started()
        for _ in range(5):
            peer.watch.finished()
            peer.watch.started()
        assert await peer.stalls_after_s() == pytest.approx(LEAST_TICKS * TICK_S, abs=TICK_S)

    run(main)


def test_a_newly_started_operation_is_no_progress():
    async def main(clock):
        peer = Watched(clock)
        for _ in range(4):
            peer.watch.started()
            await asyncio.sleep(BEAT_S)
        assert await peer.stalls_after_s() == pytest.approx(LEAST_TICKS * TICK_S - 4 * BEAT_S, abs=TICK_S)
        peer.watch.started()
        await asyncio.sleep(60)  # once

    run(main)


@pytest.mark.parametrize(
    ("silence_s", "expected_s"), [(BEAT_S, 1.125), (0.5, 1.5), (0.9, MOST_TICKS * TICK_S), (1.1, MOST_TICKS * TICK_S)]
)
def test_a_peer_with_longer_silences_before_gets_more_time(silence_s, expected_s):
    """It is given up to MOST_TICKS."""

    async def main(clock):
        peer = Watched(clock)
        peer.watch.started()
        await peer.beats(silence_s, 20)
        assert await peer.stalls_after_s() == pytest.approx(expected_s, abs=TICK_S)

    run(main)


def test_the_longest_recent_silence_counts():
    async def main(clock):
        peer = Watched(clock)
        peer.watch.started()
        await peer.beats(0.9, 1)
        await peer.beats(BEAT_S, 8)
        assert await peer.stalls_after_s() == pytest.approx(MOST_TICKS * TICK_S, abs=TICK_S)

    run(main)


def test_a_silence_long_ago_does_not_count():
    async def main(clock):
        peer = Watched(clock)
        peer.watch.started()
        await peer.beats(0.9, 1)
        await peer.beats(BEAT_S, 1000)
        assert await peer.stalls_after_s() == pytest.approx(LEAST_TICKS * TICK_S, abs=TICK_S)

    run(main)


def test_on_a_busy_host_a_peer_gets_more_time():
    async def main(clock):
        peer = Watched(clock)
        peer.watch.started()
        clock.now += 0.7  # this process had to wait
        assert await peer.stalls_after_s() == pytest.approx(MOST_TICKS * TICK_S, abs=TICK_S)

    run(main)


@pytest.mark.parametrize("away_s", [0.3, 0.6, 0.9, 5.0])
def test_after_a_pause_of_this_process_a_peer_gets_another_tick(away_s):
    """The peer may have sent something that was not read yet, whenever the pause was and however long."""

    async def main(clock):
        peer = Watched(clock)
        peer.watch.started()
        for _ in range(20):
            await asyncio.sleep(BEAT_S)
            clock.now += away_s
            await asyncio.sleep(TICK_S)
            assert peer.stalled_at is None
            peer.watch.moved()
        assert await peer.stalls_after_s() <= (MOST_TICKS + 1) * TICK_S

    run(main)


def test_finished_operations_and_closed_watches_do_not_stall():
    async def main(clock):
        finished, closed = Watched(clock), Watched(clock)
        for peer in (finished, closed):
            peer.watch.started()
            peer.watch.started()
        finished.watch.finished()
        finished.watch.finished()
        closed.watch.close()
        await asyncio.sleep(60)
        assert finished.stalled_at is closed.stalled_at is None
        finished.watch.started()
        assert await finished.stalls_after_s() == pytest.approx(LEAST_TICKS * TICK_S, abs=TICK_S)

    run(main)


def test_finishing_is_progress():
    async def main(clock):
        peer = Watched(clock)
        for _ in range(5):
            peer.watch.started()
        for _ in range(4):
            await asyncio.sleep(1.0)
            peer.watch.finished()
        assert peer.stalled_at is None
        peer.watch.close()

    run(main)


def test_heartbeats_continue_until_close():
    async def main(clock):
        beats = []
        heart = Heartbeat(BEAT_S, lambda: beats.append(clock.now))
        await asyncio.sleep(3.5 * BEAT_S)
        heart.close()
        await asyncio.sleep(60)
        assert beats == [BEAT_S, 2 * BEAT_S, 3 * BEAT_S]

    run(main)
