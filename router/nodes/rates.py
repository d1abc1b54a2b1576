"""The throughput of each node, from the token counts in its heartbeats, and that of the fleet over time."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from baton.v1 import types_pb2
from router.nodes.link import NodeLink
from router.recent import NUM_SLOTS, SLOT_S

_NUM_SAMPLES = 4


class Rates(NamedTuple):
    """A node's rates, per second unless the name says otherwise."""

    output_tokens: float = 0.0
    prompt_tokens: float = 0.0
    cache_hit_ratio: float | None = None  # None if no prompt was started
    preemptions_per_min: float = 0.0


class NodeRates:
    """Samples every link's token counts, every SLOT_S."""

    def __init__(self, links: Callable[[], Iterable[NodeLink]]) -> None:
        self._links = links
        self._samples: dict[tuple[str, int], deque[tuple[float, types_pb2.Load]]] = {}
        self.history: deque[float] = deque([0.0] * NUM_SLOTS, maxlen=NUM_SLOTS)  # output tokens/s, the oldest first

    async def run(self) -> None:
        """Sample every SLOT_S, until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(SLOT_S)

    def sample(self) -> None:
        """Record the current counts of every live link."""
        now_s, samples, total = time.monotonic(), self._samples, 0.0
        self._samples = {}
        for link in self._links():
            if not link.alive:
                continue
            key = link.record.node_id, link.record.epoch
            kept = self._samples[key] = samples.get(key, deque(maxlen=_NUM_SAMPLES))
            if kept:
                before_s, before = kept[-1]
                total += (link.load.num_output_tokens - before.num_output_tokens) / max(now_s - before_s, 1e-3)
            kept.append((now_s, link.load))
        self.history.append(total)

    def of(self, link: NodeLink) -> Rates:
        """Return a node's rates over the last few seconds."""
        kept = self._samples.get((link.record.node_id, link.record.epoch))
        if not kept:
            return Rates()
        before_s, before = kept[0]
        load, elapsed_s = link.load, time.monotonic() - before_s
        if elapsed_s < SLOT_S / 4:
            return Rates()
        num_prompt = load.num_prompt_tokens - before.num_prompt_tokens
        num_cached = load.num_cached_tokens - before.num_cached_tokens
        return Rates(
            (load.num_output_tokens - before.num_output_tokens) / elapsed_s,
            num_prompt / elapsed_s,
            num_cached / num_prompt if num_prompt else None,
            60 * (load.num_preemptions - before.num_preemptions) / elapsed_s,
        )
