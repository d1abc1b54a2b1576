"""Probes of a fleet of one prefill and one decode node: requests whose times tell how long the nodes work on them."""

import asyncio
import itertools
import math
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from baton.errors import BatonError
from baton.process.tasks import end
from bench._load import workload
from bench._load.driver import Driver
from bench._load.sse_client import Stream
from bench._load.target import Target
from bench._load.workload import Conversation, Shape

TIMEOUT_S = 120.0
PROMPTS, PROMPTS_AT_A_TIME = 8, 2  # of each length in a round
SINGLES = 3
PAUSE_S = (0.1, 0.4)
STREAMS, STREAM_PROMPT = 2, 16  # streams that decode beside prompts, and their prompt tokens
QUIET_S = 0.4  # how long these streams decode alone


@dataclass(frozen=True)
class Decoding:
    """A probe of concurrent requests with prompts and answers of one length."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int


def decodings(longest: int) -> list[Decoding]:
    """Return the probes that separate the base cost, the cost per request and the cost of context."""
    long = max(longest // 2, 64)
    return [Decoding(1, 32, 96), Decoding(4, 32, 64), Decoding(12, 32, 64), Decoding(2, long, min(long, 192))]


@dataclass(frozen=True)
class Pace:
    """The pace of streams in a time window: milliseconds per event, and the average number of streams."""

    event_ms: float
    num_running: float


@dataclass(frozen=True)
class Alone:
    """Prompts without other load: medians of TTFT and of the time to the second token; deviation of log(TTFT)."""

    ttft_ms: float
    gap_ms: float
    noise: float


@dataclass(frozen=True)
class Beside:
    """Prompts computed while some streams decode, and their effect on these streams."""

    single_ms: float  # TTFT of one at a time
    spacing_ms: float  # of several at a time
    quiet: Pace  # of the streams without prompts
    busy: Pace


class Probe:
    """Sends requests with random prompts. Raises BatonError if one fails."""

    def __init__(self, target: Target, model: str, vocab_size: int) -> None:
        self._target, self._model, self._vocab_size = target, model, vocab_size
        self._random = random.Random()

    async def alone(self, num_prompt: int) -> Alone:
        """Send requests with two output tokens, one at a time."""
        streams = await self._one_by_one(num_prompt)
        ttft_ms = [1000 * stream.ttft_s for stream in streams]
        noise = statistics.stdev(math.log(ms) for ms in ttft_ms)
        return Alone(statistics.median(ttft_ms), statistics.median(1000 * stream.tpot_s for stream in streams), noise)

    async def decoding(self, kind: Decoding) -> Pace:
        """Measure the pace while all requests decode and no prompt is computed."""
        streams = await self.run(kind.concurrency, kind.prompt_tokens, kind.output_tokens, kind.concurrency)
        begin_s, end_s = max(stream.times[0] for stream in streams), min(stream.times[-1] for stream in streams)
        if begin_s >= end_s:  # the first one ended before the last one began
            begin_s, end_s = min(stream.times[0] for stream in streams), max(stream.times[-1] for stream in streams)
        measured = pace(streams, begin_s, end_s)
        num_events = sum(len(stream.times) - 1 for stream in streams)
        num_gaps = sum(stream.num_output_tokens - 1 for stream in streams)
        return Pace(measured.event_ms * num_events / num_gaps, measured.num_running)  # correct for tokens without text

    async def beside(self, num_prompt: int, stream_tokens: int) -> Beside:
        """Send prompts while streams keep the decode node busy; an idle one would get some of these prompts."""
        streams = Driver(self._target, TIMEOUT_S)
        streaming = asyncio.create_task(streams.closed(self._conversations(STREAM_PROMPT, stream_tokens), STREAMS))
        try:
            await asyncio.sleep(QUIET_S)
            singles = await self._one_by_one(num_prompt)
            begun_s = time.monotonic()
            await asyncio.sleep(max(QUIET_S, singles[0].ttft_s))
            storm_s = time.monotonic()
            several = await self.run(PROMPTS_AT_A_TIME, num_prompt, 2, PROMPTS)
        finally:
            await end(streaming)
        _check(streams.streams)
        begun = streams.streams + streams.hung_up
        quiet = pace(begun, begun_s, storm_s)
        busy = pace(begun, storm_s, max(stream.times[0] for stream in several))
        single_ms = 1000 * statistics.median(stream.ttft_s for stream in singles)
        return Beside(single_ms, spacing_ms(several), quiet, busy)

    async def _one_by_one(self, num_prompt: int) -> list[Stream]:
        """Send requests with pauses between them: while prefill nodes are busy, decode nodes get short prompts."""
        streams = []
        for _ in range(SINGLES):
            await asyncio.sleep(self._random.uniform(*PAUSE_S))
            streams += await self.run(1, num_prompt, 2, 1)
        return streams

    async def run(self, concurrency: int, num_prompt: int, num_output: int, number: int) -> list[Stream]:
        """Send `number` requests, `concurrency` at a time."""
        driver = Driver(self._target, TIMEOUT_S)
        await driver.closed(list(itertools.islice(self._conversations(num_prompt, num_output), number)), concurrency)
        _check(driver.streams)
        return driver.streams

    def _conversations(self, num_prompt: int, num_output: int) -> Iterator[Conversation]:
        shape = Shape.fixed(self._model, num_prompt, num_output, self._vocab_size)
        return workload.conversations(shape, self._random)


def _check(streams: Sequence[Stream]) -> None:
    for stream in streams:
        if not stream.ok:
            raise BatonError(f"a probe failed: {stream.status} {stream.error}".strip())


def spacing_ms(streams: Sequence[Stream]) -> float:
    """Return the mean time between first tokens: the work of a prompt on a node that is always busy."""
    firsts = sorted(stream.times[0] for stream in streams)
    return 1000 * (firsts[-1] - firsts[0]) / (len(firsts) - 1)


def pace(streams: Sequence[Stream], begin_s: float, end_s: float) -> Pace:
    """Return the pace of tokens in `[begin_s, end_s)`, between the first and the last token of each stream."""
    running_s, num_tokens = 0.0, 0
    for times in (stream.times for stream in streams if stream.times):
        running_s += max(min(times[-1], end_s) - max(times[0], begin_s), 0.0)
        num_tokens += sum(begin_s <= at_s < end_s for at_s in times[1:])
    return Pace(1000 * running_s / max(num_tokens, 1), running_s / (end_s - begin_s))
