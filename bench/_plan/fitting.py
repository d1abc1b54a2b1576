"""Fits a node model from outside: probes of a fleet of one prefill and one decode node, a minute on two cores.

What a machine does meanwhile meets all probes alike: they take turns over the rounds, and medians of rounds count.

alone     prompts of several lengths, one request now and then, with nothing else: how much TTFT varies, and how long
          after it the second token comes
beside    the same lengths while some streams decode. One now and then: TTFT beside decoding, and over what it takes
          alone, what decoding takes from prefill. Two at a time: the prefill node is what limits, so what lies between
          first tokens lacks what TTFT has on top of work. How much slower the streams get: what prompts take from
          decoding where cores are shared, and for how long each request that comes holds up the others
decoding  several concurrencies, lengths and contexts: time per token, by how many decode at once on the average

A router gives an idle decode node prompts, and any decode node short ones while the prefill pool is busy: two nodes
then look like a fast one. So the work of a prompt is taken from single ones.
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
PARTS = (1, 4, 16, 32)  # of the longest prompt

Sample = TypeVar("Sample")


async def fit(
    target: Target, model: str, *, max_prompt_tokens: int, vocab_size: int, on_step: Callable[[str], None]
) -> NodeModel:
    """Probe `target`. BatonError where a request fails."""
    probes = Fit(Probe(target, model, vocab_size), max_prompt_tokens, on_step)
    await probes.warm_up()
    for _ in range(ROUNDS):
        await probes.round()
    return probes.model()


class Fit:
    """Samples of some rounds, and the model that they make."""

    def __init__(self, probe: Probe, longest: int, on_step: Callable[[str], None] = lambda _: None) -> None:
        self._probe, self._longest, self._on_step = probe, longest, on_step
        self._lengths = sorted({max(longest // part, 16) for part in PARTS})
        self._alone: dict[int, list[Alone]] = defaultdict(list)  # by length
        self._beside: dict[int, list[Beside]] = defaultdict(list)
        self._decoding: dict[Decoding, list[Pace]] = defaultdict(list)

    async def warm_up(self) -> None:
        """The first requests are slow, and say nothing."""
        await self._probe.run(2, 64, 8, 8)

    async def round(self) -> None:
        """Every probe once."""
        for number in self._lengths:
            self._on_step(f"prompts of {number} tokens")
            self._alone[number].append(await self._probe.alone(number))
            self._beside[number].append(await self._probe.beside(number, min(max(self._longest // 2, 64), 512)))
        for kind in decodings(self._longest):
            self._on_step(f"decoding, {kind.concurrency} at a time after {kind.prompt_tokens} tokens")
            self._decoding[kind].append(await self._probe.decoding(kind))

    def model(self) -> NodeModel:
        """Of the rounds so far, at least one."""
        rests = [_median(found, lambda beside: beside.single_ms - beside.spacing_ms) for found in self._beside.values()]
        overhead = max(min(rests), 0.0)  # others hold prompts that the decode node computed
        works = [_median(self._beside[number], lambda found: found.single_ms) - overhead for number in self._lengths]
        longest = self._lengths[-2:]  # short ones take too little to tell, and may be computed where they are decoded
        prefill_beside = statistics.median(
            (found.single_ms - overhead) / max(alone.ttft_ms - overhead, 1e-3)
            for number in longest
            for alone, found in zip(self._alone[number], self._beside[number], strict=True)
        )
        cost = self._cost([ms / prefill_beside for ms in works])
        decode_beside, join = self._beside_prompts(cost)
        gaps = [alone.gap_ms for number in longest for alone in self._alone[number]]
        return NodeModel(
            cost=cost,
            overhead_ms=overhead,
            noise=statistics.median(alone.noise for found in self._alone.values() for alone in found),
            latency_ms=max(statistics.median(gaps) - cost.decode_step_ms(1, longest[0]), 0.0),
            join_ms=join,
            prefill_beside=prefill_beside,
            decode_beside=decode_beside,
        )

    def _beside_prompts(self, cost: StepCost) -> tuple[float, float]:
        """Times as long as a step takes beside prompts, and for how long each request that comes holds all up."""
        rows, times = [], []
        for found in self._beside.values():
            times.append(_median(found, lambda beside: slower(beside, cost)))
            rows.append(
                (1.0, times[-1] / _median(found, lambda beside: beside.spacing_ms))
            )  # requests in a step's time
        beside, join = non_negative(rows, times, keep=0)
        return beside, join

    def _cost(self, works_ms: Sequence[float]) -> StepCost:
        """Of the work of prompts, and of the paces of decoding."""
        prefill = non_negative([_prompt_row(number) for number in self._lengths], works_ms)
        rows, tokens_ms = [], []
        for kind, paces in self._decoding.items():
            running = _median(paces, lambda pace: pace.num_running)
            rows.append((1.0, running, running * (kind.prompt_tokens + kind.output_tokens / 2)))
            tokens_ms.append(_median(paces, lambda pace: pace.event_ms))
        decode = non_negative(rows, tokens_ms, keep=0)  # there is no step without a base
        return StepCost(
            prefill_base_ms=prefill[0],
            prefill_token_ms=prefill[1],
            prefill_context_ms=prefill[2],
            decode_base_ms=decode[0],
            decode_request_ms=decode[1],
            decode_token_ms=decode[2],
        )


def slower(beside: Beside, cost: StepCost) -> float:
    """Times as long as steps take beside prompts; what fewer or more streams make of them is left out."""
    quiet, busy = (
        pace.event_ms / (cost.decode_base_ms + cost.decode_request_ms * pace.num_running)
        for pace in (beside.quiet, beside.busy)
    )
    return busy / quiet if quiet else 1.0


def _median(samples: Sequence[Sample], figure: Callable[[Sample], float]) -> float:
    return statistics.median(figure(sample) for sample in samples)


def _prompt_row(num_tokens: int) -> tuple[float, float, float]:
    return -(-num_tokens // CHUNK_TOKENS), num_tokens, num_tokens * num_tokens / 2
