"""Fits a node model from outside: probes of a fleet of one prefill and one decode node, a minute on two cores.

prompts   several lengths, a few requests at a time, two tokens out: the prefill node is what limits, so time per
          request is its work
alone     the same lengths, one request now and then: what TTFT has on top, and how much it varies. A node that was
          idle takes longer for a prompt than a busy one, so this grows with the prompt
decoding  several concurrencies, lengths and contexts: time per token, by how many decode at once on the average
"""

import asyncio
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from baton.errors import BatonError
from baton.step_cost import StepCost
from bench._load import lengths, workload
from bench._load.driver import Driver
from bench._load.sse_client import Stream
from bench._load.target import Target
from bench._load.workload import Shape
from bench._plan.least_squares import non_negative
from bench._plan.node_model import NodeModel

TIMEOUT_S = 120.0
PROMPT_AT_A_TIME = 4
PROMPTS = 24  # of each length
PROMPTS_ALONE = 8
PAUSE_S = (0.1, 0.4)
CHUNK_TOKENS = 2048


@dataclass(frozen=True)
class Decoding:
    """A probe: so many at a time, with prompts and answers of one length."""

    concurrency: int
    prompt_tokens: int
    output_tokens: int
    num_requests: int


def decodings(longest: int) -> list[Decoding]:
    """What tells latency, base, cost of a request and cost of context apart."""
    long = max(longest // 2, 64)
    return [
        Decoding(1, 32, 8, 12),
        Decoding(1, 32, 96, 6),
        Decoding(4, 32, 64, 16),
        Decoding(12, 32, 64, 48),
        Decoding(4, long, 64, 16),
    ]


async def fit(
    target: Target, model: str, *, max_prompt_tokens: int, vocab_size: int, on_step: Callable[[str], None]
) -> NodeModel:
    """Probe `target`. BatonError where a request fails."""
    probe = _Probe(target, model, vocab_size)
    await probe.run(2, 64, 8, 8)  # the first ones warm up
    prompt_lengths = sorted({max(max_prompt_tokens // part, 16) for part in (1, 4, 16, 32)})
    works, alone = [], []
    for number in prompt_lengths:
        on_step(f"prompts of {number} tokens")
        began_s = time.monotonic()
        await probe.run(PROMPT_AT_A_TIME, number, 2, PROMPTS)
        works.append(1000 * (time.monotonic() - began_s) / PROMPTS)
        alone.append(await probe.alone(number))
    base, token, context = non_negative([_prompt_row(number) for number in prompt_lengths], works)
    latency, decode_base, request, decode_token = await _fit_decoding(probe, max_prompt_tokens, on_step)
    cost = StepCost(
        prefill_base_ms=base,
        prefill_token_ms=token,
        prefill_context_ms=context,
        decode_base_ms=decode_base,
        decode_request_ms=request,
        decode_token_ms=decode_token,
    )
    overhead, per_token = on_top(
        prompt_lengths,
        [
            statistics.median(ttft) - cost.prefill_ms(number, 0, CHUNK_TOKENS)
            for number, ttft in zip(prompt_lengths, alone, strict=True)
        ],
    )
    noise = statistics.pstdev(math.log(ms / statistics.median(ttft)) for ttft in alone for ms in ttft)
    return NodeModel(cost=cost, overhead_ms=overhead, overhead_token_ms=per_token, noise=noise, latency_ms=latency)


def on_top(prompt_lengths: Sequence[int], rests_ms: Sequence[float]) -> tuple[float, float]:
    """What comes on top of each prompt's cost, and of each of its tokens; neither is below zero."""
    first, base = prompt_lengths[0], max(rests_ms[0], 0.0)
    slopes = [(rest - base) / (number - first) for number, rest in zip(prompt_lengths[1:], rests_ms[1:], strict=True)]
    return base, max(statistics.median(slopes), 0.0) if slopes else 0.0


async def _fit_decoding(probe: "_Probe", longest: int, on_step: Callable[[str], None]) -> list[float]:
    rows, values = [], []
    for kind in decodings(longest):
        on_step(f"decoding, {kind.concurrency} at a time after {kind.prompt_tokens} tokens")
        began_s = time.monotonic()
        streams = await probe.run(kind.concurrency, kind.prompt_tokens, kind.output_tokens, kind.num_requests)
        rows.append(decode_row(kind, streams, time.monotonic() - began_s))
        values.append(1000 * statistics.median(stream.tpot_s for stream in streams))
    return non_negative(rows, values, keep=1)  # there is no step without a base


def decode_row(kind: Decoding, streams: Sequence[Stream], elapsed_s: float) -> tuple[float, float, float, float]:
    """What time per token is made of: its share of the latency, a step, requests beside it, and their context."""
    num_running = max(sum(stream.e2e_s - stream.ttft_s for stream in streams) / elapsed_s, 1.0)
    context = num_running * (kind.prompt_tokens + kind.output_tokens / 2)
    return 1 / (kind.output_tokens - 1), 1.0, num_running, context


def _prompt_row(num_tokens: int) -> tuple[float, float, float]:
    return -(-num_tokens // CHUNK_TOKENS), num_tokens, num_tokens * num_tokens / 2


class _Probe:
    def __init__(self, target: Target, model: str, vocab_size: int) -> None:
        self._target, self._model, self._vocab_size = target, model, vocab_size
        self._random = random.Random()

    async def alone(self, num_prompt: int) -> list[float]:
        """TTFT of each, in milliseconds."""
        found = []
        for _ in range(PROMPTS_ALONE):
            await asyncio.sleep(self._random.uniform(*PAUSE_S))
            found += [1000 * stream.ttft_s for stream in await self.run(1, num_prompt, 2, 1)]
        return found

    async def run(self, concurrency: int, num_prompt: int, num_output: int, number: int) -> list[Stream]:
        prompt, output = lengths.parse(str(num_prompt)), lengths.parse(str(num_output))
        shape = Shape(model=self._model, prompt=prompt, output=output, vocab_size=self._vocab_size)
        driver = Driver(self._target, TIMEOUT_S)
        await driver.closed(list(itertools.islice(workload.conversations(shape, self._random), number)), concurrency)
        for stream in driver.streams:
            if not stream.ok:
                raise BatonError(f"a probe of {num_prompt} tokens failed: {stream.status} {stream.error}".strip())
        return driver.streams
