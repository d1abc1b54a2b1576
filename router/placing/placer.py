"""Decides when and where a request's next attempt runs, using the queue (`admission`) and the nodes (`candidates`).

A new request joins the queue; the one at its head is placed as soon as a node has room. A request that would wait
longer than it may is refused at once. A request that has been attempted before does not join the queue again.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import NoReturn

from prometheus_client import Counter

from baton.errors import Overloaded
from baton.process import tasks
from router.nodes.fleet_view import FleetView
from router.nodes.link import NodeLink
from router.placing import policy
from router.placing.admission import AdmissionQueue, Limits, Waiting, overloaded
from router.placing.candidates import Candidates
from router.placing.placement import Placement
from router.placing.prefix_replica import PrefixReplica
from router.placing.prompt_hashes import PromptHashes
from router.placing.ttft_predictor import TtftPredictor
from router.running import Running

RECHECK_S = 0.25  # a node that was avoided becomes available again without a notification

_REFUSED = Counter("baton_router_requests_refused", "Requests refused instead of being placed", ["reason"])


class Placer:
    """Places the requests of one router."""

    def __init__(self, fleet: FleetView, replica: PrefixReplica, limits: Limits) -> None:
        self._fleet = fleet
        self._replica = replica
        self._limits = limits
        self._candidates = Candidates(fleet, replica, self.nodes_changed)
        self._queue = AdmissionQueue(limits.max_waiting)
        self._predictor = TtftPredictor()
        self._wakes: dict[int, asyncio.Event] = {}  # by id() of the queue's entry

    async def place(self, running: Running) -> Placement:
        """Choose nodes for the next attempt, waiting until they exist and have room. Raises Overloaded.

        The caller enforces the deadline.
        """
        hashes = PromptHashes(running)
        if running.usage.num_attempts > 0:
            while (placement := await self._candidates.place(running, hashes)) is None:
                if self._fleet.ready:
                    self.check_patience(running)
                await self._fleet.changed(RECHECK_S)
            self._begin(placement, hashes)
            return placement
        self._predictor.forget(time.monotonic())
        found = await self._candidates.place(running, hashes)
        if found is not None and self._passes(running, found):
            self._begin_new(found, hashes)
            return found
        entry = self._join_queue(running, found)
        try:
            return await self._wait_for_turn(entry, running, hashes, found)
        finally:
            self._leave_queue(entry, is_served=False)

    def nodes_changed(self) -> None:
        """Let the head of the queue try again: nodes have come or gone, or their load has changed."""
        head = self._queue.head()
        if head is not None and (wake := self._wakes.get(id(head))):
            wake.set()

    def check_patience(self, running: Running) -> None:
        """Raise Overloaded if a request has waited for too long. One that already has output is never given up."""
        limit_s = min(self._limits.max_full_wait_s, self._limit_s(running))
        if running.age_s > limit_s and not running.output:
            self._refuse_waited(running)

    def _passes(self, running: Running, found: Placement) -> bool:
        """Whether the request may bypass the empty queue, as most do. Its tenant is charged as if it had queued."""
        choice, job = found.choice, running.job
        if len(self._queue) or self._ttft_s(choice) > self._limit_s(running):
            return False
        # if the chosen prefill node has time, not all nodes are backlogged
        has_time = found.prefill is not None and self._queue_s(choice.queue_ms) <= policy.MAX_BACKLOG_S
        if not has_time and self._holds_back():
            return False
        self._queue.passed(job.tenant, job.priority, running.num_tokens + job.sampling.max_tokens)
        return True

    def _join_queue(self, running: Running, found: Placement | None) -> Waiting:
        """Join the queue. `found` is where the request would run now. Raises Overloaded if it is full, or too slow."""
        work_ms = found.choice.prompt_ms if found is not None else self._longest_ms(running)
        if found is not None and not len(self._queue):
            wait_s = self._queue_s(found.choice.queue_ms)
        else:
            wait_s = self._predicted_wait_s(running, work_ms)
        limit_s = self._limit_s(running)
        entry = Waiting(
            tenant=running.job.tenant,
            priority=running.job.priority,
            deadline_s=min(running.job.deadline_s, time.monotonic() + limit_s),
            num_tokens=running.num_tokens + running.job.sampling.max_tokens,
            work_ms=work_ms,
            ttft_s=wait_s + work_ms / 1000,
        )
        try:
            if self._fleet.ready:
                self._predictor.check_ttft(entry.ttft_s, limit_s)
            self._queue.push(entry, wait_s)
        except Overloaded:
            _REFUSED.labels("predicted" if len(self._queue) < self._limits.max_waiting else "line_full").inc()
            raise
        self._wakes[id(entry)] = asyncio.Event()
        return entry

    async def _wait_for_turn(
        self, entry: Waiting, running: Running, hashes: PromptHashes, found: Placement | None
    ) -> Placement:
        """Wait until the entry is at the head of the queue and can be placed. `found` is where it would run now."""
        wake = self._wakes[id(entry)]
        while True:
            wake.clear()
            if self._fleet.ready:  # otherwise nodes are missing; they may come back until the deadline
                self._check_hope(entry, running)
            if self._queue.head() is entry:
                found = None if self._holds_back() else found or await self._candidates.place(running, hashes)
                if found is None:
                    self._held_back()
                elif self._queue.head() is entry:
                    self._begin_new(
                        found, hashes, lambda: self._predictor.came(entry.ttft_s, running.age_s, time.monotonic())
                    )
                    self._predictor.placed(entry.work_ms, time.monotonic())
                    self._leave_queue(entry, is_served=True)
                    return found
            found = None
            await tasks.wait(wake, RECHECK_S)

    def _check_hope(self, entry: Waiting, running: Running) -> None:
        """Raise Overloaded if a request has waited for too long, or would be late even if it were placed now."""
        least_s = running.age_s + self._queue_s(self._least_queue_ms()) + entry.work_ms / 1000
        if least_s > self._limit_s(running):
            self._predictor.gave_up(entry.ttft_s, least_s, time.monotonic())
            self._refuse_waited(running)
        self.check_patience(running)

    def _refuse_waited(self, running: Running) -> NoReturn:
        _REFUSED.labels("waited").inc()
        raise overloaded("all nodes are full at present", self._predicted_wait_s(running, 0.0))

    def _leave_queue(self, entry: Waiting, *, is_served: bool) -> None:
        self._queue.remove(entry, is_served=is_served)
        self._wakes.pop(id(entry), None)
        if not len(self._queue):
            self._predictor.emptied()
        self.nodes_changed()

    def _held_back(self) -> None:
        """Note that no node has room for the head of the queue. Times without any node are not learned from."""
        if self._fleet.ready:
            self._predictor.held_back(time.monotonic())
        else:
            self._predictor.emptied()

    def _holds_back(self) -> bool:
        """Whether every node has a backlog of more than MAX_BACKLOG_S."""
        return self._queue_s(self._least_queue_ms()) > policy.MAX_BACKLOG_S

    def _least_queue_ms(self) -> float:
        return policy.least_queue_ms([link.state for link in self._computing()])

    def _computing(self) -> list[NodeLink]:
        return self._fleet.accepting("prefill" if self._fleet.expects_prefill else "decode")

    def _limit_s(self, running: Running) -> float:
        """The longest allowed TTFT of a request."""
        return min(running.job.max_ttft_s or math.inf, self._limits.max_ttft_s or math.inf)

    def _predicted_wait_s(self, running: Running, work_ms: float) -> float:
        computing = self._computing()
        ahead_ms = self._queue.ahead_ms(running.job.tenant, running.job.priority, work_ms)
        return self._predictor.wait_ms(ahead_ms, len(computing)) / 1000 + self._queue_s(self._least_queue_ms())

    def _longest_ms(self, running: Running) -> float:
        """The predicted time to compute the whole prompt, without any cache."""
        computing = self._computing()
        if not computing:
            return 0.0
        state = computing[0].state
        return state.cost.prefill_ms(running.num_tokens, 0, state.chunk_tokens)

    def _queue_s(self, queue_ms: float) -> float:
        """A node's queue in seconds, corrected by how long queues have recently taken."""
        return self._predictor.slowness * queue_ms / 1000

    def _ttft_s(self, choice: policy.NodeChoice) -> float:
        return self._queue_s(choice.queue_ms) + choice.prompt_ms / 1000

    def _begin_new(
        self, placement: Placement, hashes: PromptHashes, on_computed: Callable[[], None] = lambda: None
    ) -> None:
        """Begin a placement; when its prompt is computed, compare the time with the prediction."""
        began_s, predicted_s = time.monotonic(), placement.choice.ttft_ms / 1000

        def computed() -> None:
            now_s = time.monotonic()
            self._predictor.began(predicted_s, now_s - began_s, now_s)
            on_computed()

        placement.on_computed = computed
        self._begin(placement, hashes)

    def _begin(self, placement: Placement, hashes: PromptHashes) -> None:
        placement.begin()
        if placement.prefill is not None and (blocks := hashes.of(self._fleet.facts)):
            self._replica.expect(placement.prefill.record.node_id, blocks)
