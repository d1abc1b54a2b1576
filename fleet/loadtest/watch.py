"""What the phases of `baton loadtest` watch besides requests: memory, and when a fleet has recovered."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Self

from bench._load import workload
from bench._load.driver import Driver
from bench._load.sse_client import Stream
from bench._load.workload import Shape
from fleet.loadtest.site import Site
from fleet.memory import Growth, growth

_NUM_SAMPLES = 40
_NORMAL_FACTOR, _NORMAL_SLACK_S = 2.0, 0.05
_NORMAL_IN_A_ROW = 3
_BACK_SHARE = 0.8
_WINDOW_S = 1.0


class MemoryWatch:
    """A context manager that samples memory while load runs."""

    def __init__(self, site: Site, seconds: float) -> None:
        self.samples: dict[str, list[float]] = {}
        self._site, self._interval_s = site, max(seconds / _NUM_SAMPLES, 0.25)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def worst_growth(self) -> tuple[str, Growth] | None:
        """Return the service that grew most, preferring those that grew too much; None with too few samples."""
        growths = [(name, grown) for name, sizes in self.samples.items() if (grown := growth(sizes)) is not None]
        return max(growths, key=lambda item: (item[1].is_too_much, item[1].share), default=None)

    async def _watch(self) -> None:
        while True:
            try:
                sizes = await asyncio.to_thread(self._site.memory_bytes)
            except OSError:
                sizes = {}
            for name, value in sizes.items():
                self.samples.setdefault(name, []).append(value)
            await asyncio.sleep(self._interval_s)


async def back_to_normal_s(
    driver: Callable[[], Driver], shape: Shape, normal_ttft_s: float, within_s: float
) -> float | None:
    """Return the seconds until three single requests in a row are as fast as without load; None if never."""
    began_s, num_good = time.monotonic(), 0
    asked = workload.conversations(shape, random.Random())  # noqa: S311
    while (passed_s := time.monotonic() - began_s) < within_s:
        if not num_good:
            first_s = passed_s
        single = driver()
        await single.closed(itertools.islice(asked, 1), 1)
        stream = single.streams[0]
        is_normal = stream.ok and stream.ttft_s <= _NORMAL_FACTOR * normal_ttft_s + _NORMAL_SLACK_S
        num_good = num_good + 1 if is_normal else 0
        if num_good == _NORMAL_IN_A_ROW:
            return first_s
    return None


def throughput_back_s(streams: Sequence[Stream], since_s: float, tokens_per_s: float) -> float | None:
    """Return the seconds until the first second with 80 % of this throughput; None if there is none.

    Events are counted, each weighted by the mean number of tokens per event of its stream.
    """
    times = sorted(_weighted(streams, since_s))
    windows: dict[int, float] = {}
    for at_s, weight in times:
        window = int((at_s - since_s) / _WINDOW_S)
        windows[window] = windows.get(window, 0.0) + weight
    enough = _BACK_SHARE * tokens_per_s * _WINDOW_S
    return next((window * _WINDOW_S for window in sorted(windows) if windows[window] >= enough), None)


def tokens_of_unended(unended: Sequence[Stream], ended: Sequence[Stream]) -> float:
    """Estimate the tokens of unfinished streams, from the tokens per event of the finished ones."""
    num_events = sum(len(stream.times) for stream in ended)
    tokens_per_event = sum(stream.num_output_tokens for stream in ended) / num_events if num_events else 1.0
    return tokens_per_event * sum(len(stream.times) for stream in unended)


def longest_silence_s(streams: Sequence[Stream], since_s: float) -> float:
    """Return the longest time after `since_s` in which no stream got a token."""
    times = sorted([since_s, *(at_s for stream in streams for at_s in stream.times if at_s > since_s)])
    return max((after - before for before, after in itertools.pairwise(times)), default=float("inf"))


def _weighted(streams: Sequence[Stream], since_s: float) -> list[tuple[float, float]]:
    return [
        (at_s, stream.num_output_tokens / len(stream.times))
        for stream in streams
        if stream.ok
        for at_s in stream.times
        if at_s >= since_s
    ]
