"""Fits a node model from outside, by probing a fleet of one prefill and one decode node for about a minute.

The probes alternate over several rounds, and medians are used, so that disturbances affect all of them alike.

alone     prompts of several lengths, one at a time, without other load: the variation of TTFT, and the time from the
          first to the second token
beside    the same lengths while some streams decode. One at a time: TTFT beside decoding; relative to TTFT alone, this
          is how much decoding slows prefill. Two at a time: the prefill node is the bottleneck, so the time between
          first tokens does not include TTFT's overhead. The slowdown of the streams: how much prompts slow decoding
          where cores are shared, and how long each arriving request holds up the others
decoding  several concurrencies, lengths and contexts: time per token, by the average number of decoding requests

A router gives prompts to an idle decode node, and short ones to any decode node while the prefill pool is busy. Two
nodes then look like one fast node, so the work of a prompt is measured from single ones.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from baton.step_cost import StepCost
from bench._load.target import Target
from bench._plan.least_squares import non_negative
from bench._plan.node_model import NodeModel
from bench._plan.probes import Alone, Beside, Decoding, Pace, Probe, decodings

ROUNDS = 5
CHUNK_TOKENS = 2048
PARTS = (1, 4, 16, 32)  # divisors of the longest prompt

Sample = TypeVar("Sample")


async def fit(
    target: Target, model: str, *, max_prompt_tokens: int, vocab_size: int, on_step: Callable[[str], None]
) -> NodeModel:
    """Probe `target` and return its node model. Raises BatonError if a request fails."""
    probes = Fit(Probe(target, model, vocab_size), max_prompt_tokens, on_step)
    await probes.warm_up()
    for _ in range(ROUNDS):
        await probes.round()
    return probes.model()


class Fit:
    """The samples of the rounds so far, and the model that they give."""

    def __init__(self, probe: Probe, longest: int, on_step: Callable[[str], None] = lambda _: None) -> None:
        self._probe, self._longest, self._on_step = probe, longest, on_step
        self._lengths = sorted({max(longest // part, 16) for part in PARTS})
        self._alone: dict[int, list[Alone]] = defaultdict(list)  # by prompt length
        self._beside: dict[int, list[Beside]] = defaultdict(list)
        self._decoding: dict[Decoding, list[Pace]] = defaultdict(list)

    async def warm_up(self) -> None:
        """Send the first, slow requests, which are not measured."""
        await self._probe.run(2, 64, 8, 8)

    async def round(self) -> None:
        """Run every probe once."""
        for number in self._lengths:
            self._on_step(f"prompts of {number} tokens")
            self._alone[number].append(await self._probe.alone(number))
            self._beside[number].append(await self._probe.beside(number, min(max(self._longest // 2, 64), 512)))
        for kind in decodings(self._longest):
            self._on_step(f"decoding, {kind.concurrency} at a time after {kind.prompt_tokens} tokens")
            self._decoding[kind].append(await self._probe.decoding(kind))

    def model(self) -> NodeModel:
        """Return the model of the rounds so far; needs at least one."""
        rests = [_median(rounds, lambda one: one.single_ms - one.spacing_ms) for rounds in self._beside.values()]
        overhead = max(min(rests), 0.0)  # larger ones include prompts that the decode node computed
        works = [_median(self._beside[number], lambda one: one.single_ms) - overhead for number in self._lengths]
        longest = self._lengths[-2:]  # short prompts are too quick to measure, and may be computed on the decode node
        prefill_beside = statistics.median(
            (beside.single_ms - overhead) / max(alone.ttft_ms - overhead, 1e-3)
            for number in longest
            for alone, beside in zip(self._alone[number], self._beside[number], strict=True)
        )
        cost = self._cost([ms / prefill_beside for ms in works])
        decode_beside, join = self._beside_prompts(cost)
        gaps = [alone.gap_ms for number in longest for alone in self._alone[number]]
        return NodeModel(
            cost=cost,
            overhead_ms=overhead,
            noise=statistics.median(alone.noise for rounds in self._alone.values() for alone in rounds),
            latency_ms=max(statistics.median(gaps) - cost.decode_step_ms(1, longest[0]), 0.0),
            join_ms=join,
            prefill_beside=prefill_beside,
            decode_beside=decode_beside,
        )

    def _beside_prompts(self, cost: StepCost) -> tuple[float, float]:
        """Return how many times as long a step takes beside prompts, and how long an arriving request holds up all."""
        rows, factors = [], []
        for rounds in self._beside.values():
            factor = _median(rounds, lambda beside: slower(beside, cost))
            num_arrivals = factor / _median(rounds, lambda beside: beside.spacing_ms)  # during one step
            factors.append(factor)
            rows.append((1.0, num_arrivals))
        beside, join = non_negative(rows, factors, keep=0)
        return beside, join

    def _cost(self, works_ms: Sequence[float]) -> StepCost:
        """Fit the cost to the work of prompts, and to the paces of decoding."""
        prefill = non_negative([_prompt_row(number) for number in self._lengths], works_ms)
        rows, tokens_ms = [], []
        for kind, paces in self._decoding.items():
            running = _median(paces, lambda pace: pace.num_running)
            rows.append((1.0, running, running * (kind.prompt_tokens + kind.output_tokens / 2)))
            tokens_ms.append(_median(paces, lambda pace: pace.event_ms))
        decode = non_negative(rows, tokens_ms, keep=0)  # every step has a base cost
        return StepCost(
            prefill_base_ms=prefill[0],
            prefill_token_ms=prefill[1],
            prefill_context_ms=prefill[2],
            decode_base_ms=decode[0],
            decode_request_ms=decode[1],
            decode_token_ms=decode[2],
        )


def slower(beside: Beside, cost: StepCost) -> float:
    """Return how many times as long steps take beside prompts, corrected for the number of streams."""
    quiet, busy = (
        pace.event_ms / (cost.decode_base_ms + cost.decode_request_ms * pace.num_running)
        for pace in (beside.quiet, beside.busy)
    )
    return busy / quiet if quiet else 1.0


def _median(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> float:
    return statistics.median(figure(sample) for sample in samples)


def _prompt_row(num_tokens: int) -> tuple[float, float, float]:
    return -(-num_tokens // CHUNK_TOKENS), num_tokens, num_tokens * num_tokens / 2
