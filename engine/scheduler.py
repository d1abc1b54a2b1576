"""Decides which requests run in a step, with how many tokens each; the same on prefill, decode and colocated nodes.

A step is a mixed batch under a token budget. Running requests come first, from the oldest on: one token each if they
decode, otherwise a chunk of the prompt. Then waiting requests are admitted: only those that have begun before, whose
clients wait in mid-stream, or, if there are none of these, the others. An admitted request gets blocks for all its
tokens, so that a prompt never stalls half-way; only decoding grows. When blocks run out, the latest running request is
preempted: its blocks are freed, and it is recomputed later. Prefill-only requests are never preempted, since a transfer
may be reading their blocks.

A request that stops running while a step with it is under way keeps its row and its blocks until that step has landed,
because the step still writes to them (`let_go`).
"""

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from engine.blocks import BlockManager
from engine.config import EngineConfig
from engine.request import Request, RequestState
from engine.rows import Rows, Schedule, places
from engine.running import Running


class Scheduler:
    """The queues of requests, and the rows and blocks that go with them."""

    def __init__(self, config: EngineConfig, blocks: BlockManager, rows: Rows) -> None:
        self.waiting: deque[Request] = deque()
        self.ready: deque[Request] = deque()  # their KV was computed elsewhere
        self.running = Running(rows)
        self.num_preemptions = 0
        self._reserved: dict[int, Request] = {}  # RESERVED or HELD, by id(): they hold blocks and do not run
        self._config = config
        self._blocks = blocks
        self._rows = rows
        # Blocks to leave free on admission, so that a new request does not cause a preemption at once.
        self._num_spare_blocks = config.num_blocks // 100

    @property
    def has_work(self) -> bool:
        """Whether any request runs or wants to."""
        return bool(self.running or self.ready or self.waiting)

    def requests(self) -> Iterator[Request]:
        """Yield all requests that hold blocks or may get some."""
        yield from self.running
        yield from self.ready
        yield from self.waiting
        yield from self._reserved.values()
        yield from (request for request in self.running.departing() if request.state is not RequestState.HELD)

    @property
    def can_grow(self) -> bool:
        """Whether each running request can grow by a token without a preemption."""
        return self._blocks.num_free_blocks >= len(self.running) + len(self.ready)

    def add(self, request: Request) -> None:
        """Queue a request without blocks. One that resumes after a failover goes before those that have not begun."""
        if not request.num_output_tokens:
            self.waiting.append(request)
            return
        begun = map(_has_begun, self.waiting)
        self.waiting.insert(next((place for place, has in enumerate(begun) if not has), len(self.waiting)), request)

    def reserve(self, request: Request) -> bool:
        """Give the request all its blocks at once; False if there are too few, or preempted requests need them."""
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
        """Queue a reserved request, whose blocks are filled now, for the next step that has room."""
        del self._reserved[id(request)]
        request.state = RequestState.READY
        self.ready.append(request)

    def let_go(self) -> None:
        """After a step has landed: free the rows and blocks that were kept for it."""
        for request in self.running.let_go():
            if request.state is RequestState.FINISHED:
                self._blocks.release(request)

    def hold(self, request: Request) -> None:
        """Stop running a request, but keep its blocks until `release`."""
        self.running.stop(request)
        request.state = RequestState.HELD
        self._reserved[id(request)] = request

    def release(self, request: Request) -> None:
        """Forget the request, whatever state it is in, and free its blocks. Idempotent."""
        if request.state is RequestState.FINISHED:
            return
        if request.state is RequestState.RUNNING:
            self.running.stop(request)
        elif request.state is RequestState.WAITING:
            self.waiting.remove(request)
        elif request.state is RequestState.READY:
            self.ready.remove(request)
        else:
            del self._reserved[id(request)]
        request.state = RequestState.FINISHED
        if not self.running.is_departing(request):
            self._blocks.release(request)

    def schedule(self) -> Schedule:
        """Schedule the next step; empty if nothing can run. Preempts requests if blocks run out."""
        self._admit_ready()
        self._stretch()
        num_preemptions = self.num_preemptions
        num_tokens = self._schedule_running()
        if self.waiting and (num_preemptions == self.num_preemptions or not len(num_tokens)):
            num_tokens = self._schedule_waiting(num_tokens)
        requests, row = self.running.in_order()
        if len(num_tokens) < len(requests):
            requests, row = requests[: len(num_tokens)], row[: len(num_tokens)]
        return Schedule(requests, row, num_tokens, int(np.add.reduce(num_tokens)))

    def num_unstarted_tokens(self) -> int:
        """Tokens to compute for waiting requests, and for running ones that have drawn none on this node yet."""
        _, row = self.running.in_order()
        running = int(self._rows.num_uncomputed[row][self._rows.is_new[row]].sum())
        return running + sum(request.num_uncomputed_tokens for request in self.waiting)

    def num_context_tokens(self) -> int:
        """Tokens of the running requests, and of those that hold blocks without running."""
        _, row = self.running.in_order()
        return int(self._rows.num_tokens[row].sum()) + sum(r.num_tokens for r in self._reserved.values())

    @property
    def num_reserved(self) -> int:
        """Requests that hold blocks and do not run."""
        return len(self._reserved)

    def num_idle_blocks(self) -> int:
        """Blocks held by requests that do not run, because a transfer writes or reads them."""
        return len({block_id for request in self._reserved.values() for block_id in request.block_ids})

    def _admit_ready(self) -> None:
        while self.ready and len(self.running) < self._config.max_num_seqs:
            self.running.add(self.ready.popleft())

    def _stretch(self) -> None:
        """Preempt requests that have grown too long for their rotary embedding; they are recomputed with another."""
        if not self._config.stretches_after:
            return
        requests, row = self.running.in_order()
        for place in places(self._rows.is_outgrown(row)).tolist():
            requests[place].stretch()
            self._preempt(requests[place])

    def _schedule_running(self) -> NDArray[np.int64]:
        """How many tokens to compute for each of the first running requests, which then have the blocks for them."""
        rows, block_size = self._rows, self._config.block_size
        while True:
            requests, row = self.running.in_order()
            num_tokens = self._within_budget(rows.num_uncomputed[row])
            row = row[: len(num_tokens)]
            num_needed = rows.num_tokens[row] - rows.num_uncomputed[row] + num_tokens
            short = places(num_needed > rows.num_blocks[row] * block_size).tolist()
            if all(self._grow(requests[place], int(num_needed[place]), place) for place in short):
                return num_tokens

    def _within_budget(self, num_uncomputed: NDArray[np.int64]) -> NDArray[np.int64]:
        budget, until = self._config.max_num_batched_tokens, num_uncomputed.cumsum()
        if not len(until) or until[-1] <= budget:
            return num_uncomputed
        num_tokens: NDArray[np.int64] = np.minimum(num_uncomputed, budget - until + num_uncomputed)
        return num_tokens[num_tokens > 0]

    def _grow(self, request: Request, num_tokens: int, place: int) -> bool:
        """Allocate blocks for `num_tokens` tokens; False if that took preemptions, perhaps of this request itself."""
        num_preemptions = self.num_preemptions
        while not self._blocks.grow(request, num_tokens):
            victim = self._latest(place)
            self._preempt(victim)
            if victim is request:
                return False
        self._rows.append_blocks(request)
        return num_preemptions == self.num_preemptions

    def _latest(self, place: int) -> Request:
        """The latest request that may be preempted, down to that place, where the growing request is."""
        return next(request for request in self.running.from_latest(place) if not request.prefill_only)

    def _preempt(self, request: Request) -> None:
        self.running.stop(request)
        self._blocks.release(request)
        request.num_computed_tokens = 0
        request.num_preemptions += 1
        self.num_preemptions += 1
        request.state = RequestState.WAITING
        self.waiting.appendleft(request)

    def _schedule_waiting(self, num_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Extend `num_tokens` by waiting requests, as far as there is room."""
        budget = self._config.max_num_batched_tokens - int(num_tokens.sum())
        admitted: list[int] = []
        goes_on = _has_begun(self.waiting[0])
        while budget and self.waiting and len(self.running) < self._config.max_num_seqs:
            request = self.waiting[0]
            if goes_on > _has_begun(request) or not self._admit(request):
                break
            self.waiting.popleft()
            self.running.add(request)
            admitted.append(min(request.num_uncomputed_tokens, budget))
            budget -= admitted[-1]
        return np.concatenate((num_tokens, admitted)).astype(np.int64) if admitted else num_tokens

    def _admit(self, request: Request) -> bool:
        """Allocate blocks for all tokens of a request; False if there are too few.

        Its last token is computed even if it is cached, because its logits are needed; all of its tokens are if the
        log-probabilities of its prompt are.
        """
        max_cached_tokens = request.num_tokens - 1 if request.prompt_work.num_logprobs < 0 else 0
        found = self._blocks.find(request, max_cached_tokens)
        num_blocks = self._blocks.num_blocks_for(request.num_tokens)
        if not self._blocks.allocate(request, found, num_blocks, self._num_spare()):
            return False
        request.num_computed_tokens = len(found) * self._config.block_size
        if not request.num_preemptions:
            request.num_cached_tokens = min(request.num_computed_tokens, request.num_prompt_tokens)
        return True

    def _num_spare(self) -> int:
        return self._num_spare_blocks if self.running else 0


def _has_begun(request: Request) -> bool:
    """Whether it has run before: elsewhere, or here before it was preempted."""
    return bool(request.num_output_tokens or request.num_preemptions)
