"""A simulated prefill node: computes prompts one after another in chunks, with a cache of blocks."""

import math
import random
from collections import deque
from collections.abc import Callable, Sequence

from baton.v1 import types_pb2
from bench._simulated.block_cache import BlockCache
from bench._simulated.clock import VirtualClock
from bench._simulated.hardware import Hardware, SimulatedRequest
from router.placing.expected_blocks import ExpectedBlocks

_SMOOTHING = 0.1  # as in `engine.speed`

Done = Callable[[float], None]  # called with the time at which the prompt began


class PrefillNode:
    """Takes prompts by `submit`, and calls the given callable when each one is done."""

    def __init__(self, clock: VirtualClock, hardware: Hardware, rng: random.Random) -> None:
        self.cache = BlockCache(hardware.num_blocks)
        self.expected = ExpectedBlocks()
        self.work_ms = 0.0  # spent on prompts
        self._clock, self._hardware, self._rng = clock, hardware, rng
        self._waiting: deque[tuple[SimulatedRequest, Done]] = deque()
        self._waiting_tokens = 0
        self._left_ms, self._slower, self._advanced_at_ms = 0.0, 1.0, 0.0  # of the current prompt
        self._plan = 0  # number of the latest scheduled end; older ones are ignored
        self._running: tuple[SimulatedRequest, Done, float] | None = None  # and when it began
        self._tokens_per_ms = 1 / hardware.cost.prefill_token_ms

    @property
    def is_busy(self) -> bool:
        """Whether the node is computing a prompt."""
        return self._running is not None

    def submit(self, request: SimulatedRequest, done: Done) -> None:
        """Queue a prompt."""
        self.expected.add(request.hashes, self._clock.now_s)
        self._waiting.append((request, done))
        self._waiting_tokens += request.num_prompt_tokens
        if not self.is_busy:
            self._begin()

    def slow_down(self, slower: float) -> None:
        """Multiply computing times by `slower` from now on."""
        self._advance()
        self._slower = slower
        self._replan()

    def find(self, hashes: Sequence[int]) -> int:
        """Return how many leading blocks a router assumes this node to hold."""
        return self.cache.find(hashes, self.expected, self._clock.now_s)

    def load(self) -> types_pb2.Load:
        """Return the load that a real node would report. Queued prompts count in full; their hits are not known yet."""
        self._advance()
        remaining_tokens = self._left_ms * self._tokens_per_ms
        return types_pb2.Load(
            num_running=int(self.is_busy),
            num_waiting=len(self._waiting),
            num_waiting_tokens=self._waiting_tokens + max(int(remaining_tokens), 0),
            num_blocks=self._hardware.num_blocks,
            num_free_blocks=self._hardware.num_blocks,
            max_num_batched_tokens=self._hardware.chunk_tokens,
            prefill_tokens_per_s=1000 * self._tokens_per_ms,
            step_cost=step_cost(self._hardware),
        )

    def _begin(self) -> None:
        request, done = self._waiting.popleft()
        self._waiting_tokens -= request.num_prompt_tokens
        self._advanced_at_ms = self._clock.now_ms
        self._running = request, done, self._clock.now_ms
        self._left_ms = work_ms = begin_prompt(request, self.cache, self._hardware, self._rng)
        num_tokens = request.num_prompt_tokens - request.num_cached_blocks * self._hardware.block_size
        self._tokens_per_ms += _SMOOTHING * (max(num_tokens, 1) / work_ms - self._tokens_per_ms)
        self._replan()

    def _advance(self) -> None:
        """Advance to the present."""
        if self.is_busy:
            took_ms = self._clock.now_ms - self._advanced_at_ms
            self.work_ms += took_ms
            self._left_ms = max(self._left_ms - took_ms / self._slower, 0.0)
        self._advanced_at_ms = self._clock.now_ms

    def _replan(self) -> None:
        self._plan += 1
        if self._running is not None:
            plan = self._plan
            self._clock.at(self._clock.now_ms + self._left_ms * self._slower, lambda: self._end(plan))

    def _end(self, plan: int) -> None:
        if plan != self._plan or self._running is None:
            return
        self._advance()
        request, done, began_ms = self._running
        self._running, self._left_ms = None, 0.0
        self.cache.touch(request.hashes)
        request.first_token_ms = self._clock.now_ms
        if self._waiting:
            self._begin()
        done(began_ms)


def begin_prompt(request: SimulatedRequest, cache: BlockCache, hardware: Hardware, rng: random.Random) -> float:
    """Return how many milliseconds computing the prompt takes, without its cache hits."""
    hits = request.num_cached_blocks = cache.find(request.hashes)
    cache.touch(request.hashes[:hits])
    num_uncached = max(request.num_prompt_tokens - hits * hardware.block_size, 1)
    work_ms = hardware.cost.prefill_ms(num_uncached, request.num_prompt_tokens - num_uncached, hardware.chunk_tokens)
    return work_ms * math.exp(rng.gauss(0.0, hardware.noise))


def step_cost(hardware: Hardware) -> types_pb2.StepCost:
    """Return the step cost that a node reports."""
    cost = hardware.cost
    return types_pb2.StepCost(**{name: getattr(cost, name) for name in cost.__struct_fields__})
