"""A simulated decode node: a continuous batch whose step time grows with its requests, context and own prompts.

Between two changes of the batch every request gets one token per step, so only a step counter has to advance: a
request that joins at step v with n tokens left leaves at v + n.
"""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable

from baton.v1 import types_pb2
from bench._simulated.block_cache import BlockCache
from bench._simulated.clock import VirtualClock
from bench._simulated.hardware import Hardware, SimulatedRequest
from bench._simulated.prefill_node import begin_prompt, step_cost

Done = Callable[[], None]


class DecodeNode:
    """Requests arrive by `reserve`, then `join` when their KV has arrived; or by `submit` with their prompt."""

    def __init__(self, clock: VirtualClock, hardware: Hardware, rng: random.Random) -> None:
        self.cache = BlockCache(hardware.num_blocks)
        self.work_ms = 0.0  # spent on requests: own prompts, and what each request adds to each step
        self.receives_until_ms = 0.0  # when its network link becomes free
        self._clock, self._hardware, self._rng = clock, hardware, rng
        self._leaving: list[tuple[float, int, SimulatedRequest, Done]] = []  # ordered by the step in which they end
        self._order = itertools.count()
        self._num_held_blocks = 0
        self._context = 0.0
        self._steps = 0.0
        self._advanced_at_ms = 0.0
        self._step_ms = 0.0  # present step time; 0 if nothing runs
        self._reserved: dict[int, int] = {}  # id() of a request -> its tokens, while its KV is in transfer
        self._plan = 0  # number of the latest scheduled event; older ones are ignored
        self._waiting: deque[tuple[SimulatedRequest, Done, Done]] = deque()
        self._waiting_tokens = 0
        self._is_computing = False
        self._slower = 1.0

    @property
    def is_busy(self) -> bool:
        """Whether the node computes or decodes anything."""
        return self._is_computing or bool(self._leaving)

    def slow_down(self, slower: float) -> None:
        """Multiply step times by `slower` from now on; a running prompt computation is not changed."""
        self._advance()
        self._slower = slower
        self._replan()

    def reserve(self, request: SimulatedRequest) -> int:
        """Hold blocks for the whole request; return how many have to be transferred."""
        hits = self.cache.find(request.hashes)
        self.cache.touch(request.hashes[:hits])
        self._hold(self._num_blocks(request))
        self._reserved[id(request)] = request.num_prompt_tokens
        return max(-(-request.num_prompt_tokens // self._hardware.block_size) - hits, 0)

    def join(self, request: SimulatedRequest, done: Done) -> None:
        """Start decoding a request whose KV has arrived."""
        self._advance()
        self._reserved.pop(id(request), None)
        self._context += request.num_prompt_tokens
        left = max(request.num_output_tokens - 1, 0)
        heapq.heappush(self._leaving, (self._steps + left, next(self._order), request, done))
        self._advanced_at_ms += self._hardware.join_ms
        self._replan()

    def submit(self, request: SimulatedRequest, computed: Done, done: Done) -> None:
        """Compute the prompt on this node, in the same batch as decoding, and then decode the request."""
        self._hold(self._num_blocks(request))
        self._waiting.append((request, computed, done))
        self._waiting_tokens += request.num_prompt_tokens
        if not self._is_computing:
            self._compute_next()

    def load(self) -> types_pb2.Load:
        """Return the load that a real node would report."""
        hardware = self._hardware
        return types_pb2.Load(
            num_running=len(self._leaving),
            num_reserved=len(self._reserved),
            num_context_tokens=int(self._context) + sum(self._reserved.values()),
            num_waiting=len(self._waiting),
            num_waiting_tokens=self._waiting_tokens,
            num_blocks=hardware.num_blocks,
            num_free_blocks=max(hardware.num_blocks - self._num_held_blocks, 0),
            max_num_batched_tokens=hardware.chunk_tokens,
            step_cost=step_cost(hardware),
        )

    def _num_blocks(self, request: SimulatedRequest) -> int:
        return -(-(request.num_prompt_tokens + request.num_output_tokens) // self._hardware.block_size)

    def _hold(self, num_blocks: int) -> None:
        self._num_held_blocks += num_blocks
        self.cache.shrink(self._hardware.num_blocks - self._num_held_blocks)

    def _compute_next(self) -> None:
        request, computed, done = self._waiting.popleft()
        self._waiting_tokens -= request.num_prompt_tokens
        self._is_computing = True
        self._advance()
        work_ms = self._slower * begin_prompt(request, self.cache, self._hardware, self._rng)
        self.work_ms += work_ms
        num_uncached = max(request.num_prompt_tokens - request.num_cached_blocks * self._hardware.block_size, 1)
        num_steps = -(-num_uncached // self._hardware.chunk_tokens)
        took_ms = work_ms + num_steps * (self._decode_ms() if self._leaving else 0.0)
        self._step_ms = took_ms / num_steps
        self._schedule()
        self._clock.at(self._clock.now_ms + took_ms, lambda: self._computed(request, computed, done))

    def _computed(self, request: SimulatedRequest, computed: Done, done: Done) -> None:
        self._advance()
        self._is_computing = False
        request.first_token_ms = self._clock.now_ms
        computed()
        self.join(request, done)
        if self._waiting:
            self._compute_next()

    def _decode_ms(self) -> float:
        return self._slower * self._hardware.cost.decode_step_ms(len(self._leaving), int(self._context))

    def _advance(self) -> None:
        """Advance the step counter to the present, unless the node is standing still."""
        now_ms = self._clock.now_ms
        if now_ms < self._advanced_at_ms:
            return
        if self._leaving and self._step_ms > 0:
            steps = (now_ms - self._advanced_at_ms) / self._step_ms
            self._steps += steps
            self.work_ms += steps * (self._decode_ms() - self._slower * self._hardware.cost.decode_base_ms)
            self._context += steps * len(self._leaving)
        self._advanced_at_ms = now_ms

    def _replan(self) -> None:
        if not self._is_computing:
            self._step_ms = self._decode_ms()
        self._schedule()

    def _schedule(self) -> None:
        self._plan += 1
        if self._leaving:
            plan, left = self._plan, max(self._leaving[0][0] - self._steps, 0.0)
            self._clock.at(
                max(self._clock.now_ms, self._advanced_at_ms) + left * self._step_ms, lambda: self._leave(plan)
            )

    def _leave(self, plan: int) -> None:
        if plan != self._plan:
            return
        self._advance()
        ended: list[Done] = []
        while self._leaving and self._leaving[0][0] <= self._steps + 1e-6:
            _, _, request, done = heapq.heappop(self._leaving)
            request.end_ms = self._clock.now_ms
            self._context = max(self._context - request.num_prompt_tokens - request.num_output_tokens, 0.0)
            self._hold(-self._num_blocks(request))
            self.cache.touch(request.hashes)
            ended.append(done)
        self._replan()
        for done in ended:
            done()
