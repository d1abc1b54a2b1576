"""Which requests run in a step, and how many tokens of each: the same on prefill, decode and colocated nodes.

A step is a mixed batch under a budget of tokens: first the running requests, oldest first (one token each in decoding,
a chunk where a prompt is not done), then newcomers. A request gets the blocks of all its tokens when it is admitted, so
a prompt once begun is never stuck; only decoding grows. Where blocks run out, the latest running request is preempted:
it gives its blocks back and is computed anew later. Prefill-only requests are never preempted: their blocks may be on
the wire.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from engine.blocks import BlockManager
from engine.config import EngineConfig
from engine.request import Request, RequestState
from engine.rows import Rows


class Scheduled(NamedTuple):
    """A request in a step, and how many of its tokens, from num_computed_tokens on, are computed in it."""

    request: Request
    num_tokens: int


class Scheduler:
    """Queues, and the rows and blocks that go with them."""

    def __init__(self, config: EngineConfig, blocks: BlockManager, rows: Rows) -> None:
        self.waiting: deque[Request] = deque()
        self.ready: deque[Request] = deque()  # their KV came from elsewhere
        self.running: list[Request] = []  # oldest first
        self.num_preemptions = 0
        self._reserved: dict[int, Request] = {}  # RESERVED or HELD, by id(): they hold blocks and do not run
        self._config = config
        self._blocks = blocks
        self._rows = rows
        # Blocks to leave free on admission, so that a newcomer does not cost a running request its place at once.
        self._num_spare_blocks = config.num_blocks // 100

    @property
    def has_work(self) -> bool:
        """Whether any request runs or wants to."""
        return bool(self.running or self.ready or self.waiting)

    def requests(self) -> Iterator[Request]:
        """All that own blocks or may come to."""
        yield from self.running
        yield from self.ready
        yield from self.waiting
        yield from self._reserved.values()

    def add(self, request: Request) -> None:
        """Queue a request without blocks."""
        self.waiting.append(request)

    def reserve(self, request: Request) -> bool:
        """Give the request all its blocks at once; False if there are not enough, or preempted requests need them."""
        if self.waiting and self.waiting[0].num_preemptions:
            return False
        found = self._blocks.find(request, request.num_tokens)
        num_blocks = self._blocks.num_blocks_for(request.num_tokens)
        if not self._blocks.allocate(request, found, num_blocks, self._num_spare()):
            return False
        request.num_present_blocks = len(found)
        request.num_cached_tokens = min(len(found) * self._config.block_size, request.num_prompt_tokens)
        request.state = RequestState.RESERVED
        self._reserved[id(request)] = request
        return True

    def start(self, request: Request) -> None:
        """A reserved request's blocks are filled: it runs in the next step that has room."""
        del self._reserved[id(request)]
        request.state = RequestState.READY
        self.ready.append(request)

    def hold(self, request: Request) -> None:
        """Stop running, and keep the blocks until `release`."""
        self._stop_running(request)
        request.state = RequestState.HELD
        self._reserved[id(request)] = request

    def release(self, request: Request) -> None:
        """Forget the request, whatever its state, and free its blocks. Idempotent."""
        if request.state is RequestState.FINISHED:
            return
        if request.state is RequestState.RUNNING:
            self._stop_running(request)
        elif request.state is RequestState.WAITING:
            self.waiting.remove(request)
        elif request.state is RequestState.READY:
            self.ready.remove(request)
        else:
            del self._reserved[id(request)]
        self._blocks.release(request)
        request.state = RequestState.FINISHED

    def schedule(self) -> list[Scheduled]:
        """The next step; empty if nothing can run. Preempts where blocks run out."""
        self._admit_ready()
        num_preemptions = self.num_preemptions
        scheduled = self._schedule_running()
        if num_preemptions == self.num_preemptions or not scheduled:
            self._schedule_waiting(scheduled)
        return scheduled

    def _admit_ready(self) -> None:
        while self.ready and len(self.running) < self._config.max_num_seqs:
            self._run(self.ready.popleft())

    def _schedule_running(self) -> list[Scheduled]:
        scheduled: list[Scheduled] = []
        budget = self._config.max_num_batched_tokens
        while budget and len(scheduled) < len(self.running):
            request = self.running[len(scheduled)]
            num_tokens = min(request.num_uncomputed_tokens, budget)
            if not self._grow(request, request.num_computed_tokens + num_tokens, len(scheduled)):
                break
            scheduled.append(Scheduled(request, num_tokens))
            budget -= num_tokens
        return scheduled

    def _grow(self, request: Request, num_tokens: int, num_scheduled: int) -> bool:
        """Blocks for `num_tokens` tokens, at the cost of the latest requests; False if it had to give way itself."""
        if num_tokens <= len(request.block_ids) * self._config.block_size:
            return True
        while not self._blocks.grow(request, num_tokens):
            victim = self._latest(num_scheduled)
            self._preempt(victim)
            if victim is request:
                return False
        self._rows.append_blocks(request)
        return True

    def _latest(self, num_scheduled: int) -> Request:
        """The latest of those not yet in this step. The one that wants to grow is among them."""
        return next(request for request in reversed(self.running[num_scheduled:]) if not request.prefill_only)

    def _preempt(self, request: Request) -> None:
        self._stop_running(request)
        self._blocks.release(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        request.state = RequestState.WAITING
        self.waiting.appendleft(request)

    def _schedule_waiting(self, scheduled: list[Scheduled]) -> None:
        budget = self._config.max_num_batched_tokens - sum(num_tokens for _, num_tokens in scheduled)
        while budget and self.waiting and len(self.running) < self._config.max_num_seqs:
            request = self.waiting[0]
            if not self._admit(request):
                return
            self.waiting.popleft()
            self._run(request)
            num_tokens = min(request.num_uncomputed_tokens, budget)
            scheduled.append(Scheduled(request, num_tokens))
            budget -= num_tokens

    def _admit(self, request: Request) -> bool:
        """Blocks for all its tokens, of which the last is always computed: its logits are wanted."""
        found = self._blocks.find(request, request.num_tokens - 1)
        num_blocks = self._blocks.num_blocks_for(request.num_tokens)
        if not self._blocks.allocate(request, found, num_blocks, self._num_spare()):
            return False
        request.num_computed_tokens = len(found) * self._config.block_size
        if not request.num_preemptions:
            request.num_cached_tokens = min(request.num_computed_tokens, request.num_prompt_tokens)
        return True

    def _num_spare(self) -> int:
        return self._num_spare_blocks if self.running else 0

    def _run(self, request: Request) -> None:
        request.state = RequestState.RUNNING
        self._rows.take(request)
        self.running.append(request)

    def _stop_running(self, request: Request) -> None:
        self.running.remove(request)
        self._rows.give_back(request)
