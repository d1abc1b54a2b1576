"""Which nodes serve a request's next attempt, and when: candidates, cached prefixes and the line come together here.

A new request gets in line (`admission`); whose turn it is is placed as soon as some node has room. One that would wait
longer than it wants to is sent away at once. A request that some node had already taken up does not get in line again.
"""

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import msgspec
from prometheus_client import Counter

from baton.errors import BatonError, Overloaded
from baton.prefix_hash import BlockHash, block_hashes, root_hash
from baton.timeline import Timeline, Value
from router import policy
from router.admission import AdmissionQueue, Drain, Limits, Waiting, check_ttft, overloaded
from router.fleet_view import FleetView, ModelFacts
from router.node_link import NodeLink
from router.policy import Ask, Choice
from router.prefix_replica import PrefixReplica
from router.running import Running

RECHECK_S = 0.25  # nodes that were avoided come back without saying so

_REFUSED = Counter("baton_router_requests_refused", "Requests sent away instead of being placed", ["reason"])


class Placement(msgspec.Struct, eq=False):
    """The nodes of one attempt, and the work that they are counted with until they have told their load again."""

    prefill: NodeLink | None  # None: all on the decode node
    decode: NodeLink | None  # None: only one token is wanted
    choice: Choice
    num_tokens: int
    on_change: Callable[[], None]
    is_computed: bool = False

    def begin(self) -> None:
        """Count the work."""
        if self._computing is not None:
            self._computing.state.send_prompt(self.choice.prompt_ms, time.monotonic())
        if self.decode is not None:
            self.decode.state.send_decode(self.num_tokens, self.choice.num_missing_blocks)

    def computed(self) -> None:
        """The prompt is computed. Idempotent."""
        if self._computing is not None and not self.is_computed:
            self._computing.state.prompt_done(self.choice.prompt_ms)
            self.on_change()
        self.is_computed = True

    @property
    def node_ids(self) -> list[str]:
        """Of the nodes that take part."""
        return [link.record.node_id for link in (self.prefill, self.decode) if link is not None]

    def end(self) -> None:
        """The attempt is over."""
        self.computed()
        if self.decode is not None:
            self.decode.state.decode_done(self.num_tokens, self.choice.num_missing_blocks)
            self.on_change()

    @property
    def described(self) -> dict[str, Value]:
        """For timelines."""
        counts = {
            "num_uncached_tokens": self.choice.num_uncached_tokens,
            "num_missing_blocks": self.choice.num_missing_blocks,
        }
        return {**self._names, **counts}

    @contextlib.contextmanager
    def timed(self, timeline: Timeline, name: str, attempt: int) -> Iterator[None]:
        """Enter what is done meanwhile into a timeline, with the nodes and the error in which it ends."""
        began_s, error = time.monotonic(), {}
        try:
            yield
        except BatonError as raised:
            error = {"error": raised.code or ""}
            raise
        finally:
            timeline.add(name, began_s, attempt=attempt, **self._names, **error)

    @property
    def _names(self) -> dict[str, str]:
        nodes = {"prefill": self.prefill, "decode": self.decode}
        return {role: link.record.node_id for role, link in nodes.items() if link is not None}

    @property
    def _computing(self) -> NodeLink | None:
        return self.prefill or self.decode


class Placer:
    """Places the requests of one router."""

    def __init__(self, fleet: FleetView, replica: PrefixReplica, limits: Limits) -> None:
        self._fleet = fleet
        self._replica = replica
        self._limits = limits
        self._turns = itertools.count()
        self._queue = AdmissionQueue(limits.max_waiting)
        self._drain = Drain()
        self._wakes: dict[int, asyncio.Event] = {}  # by id() of a place in line

    async def place(self, running: Running) -> Placement:
        """Waits for nodes to come or to have room. Raises Overloaded. The deadline is the caller's."""
        hashes = _Hashes(running)
        if running.usage.num_attempts > 0:
            while (placement := await self._try(running, hashes)) is None:
                if self._fleet.ready:
                    self.check_patience(running)
                await self._fleet_changed()
            placement.begin()
            return placement
        entry = await self._get_in_line(running, hashes)
        try:
            return await self._wait_for_turn(entry, running, hashes)
        finally:
            self._leave_line(entry, is_served=False)

    def nodes_changed(self) -> None:
        """A node has come, gone, told its load, or has less to do: whose turn it is may try again."""
        head = self._queue.head()
        if head is not None and (wake := self._wakes.get(id(head))):
            wake.set()

    def check_patience(self, running: Running) -> None:
        """Raise Overloaded for a request that has waited long enough. One that has begun is carried to its end."""
        limit_s = min(self._limits.max_full_wait_s, self._limit_s(running))
        if running.age_s > limit_s and not running.output:
            _REFUSED.labels("waited").inc()
            raise overloaded("all nodes are full at present", self._predicted_wait_s(running, 0.0))

    async def _get_in_line(self, running: Running, hashes: "_Hashes") -> Waiting:
        """Raises Overloaded where there is no place in it, or where the wait would be too long."""
        choice = await self._best(running, hashes)
        work_ms = choice.prompt_ms if choice is not None else self._longest_ms(running)
        wait_s = self._predicted_wait_s(running, work_ms)
        if choice is not None and not len(self._queue):
            wait_s = choice.queue_ms / 1000
        limit_s = self._limit_s(running)
        entry = Waiting(
            tenant=running.job.tenant,
            priority=running.job.priority,
            deadline_s=min(running.job.deadline_s, time.monotonic() + limit_s),
            num_tokens=running.num_tokens + running.job.sampling.max_tokens,
            work_ms=work_ms,
        )
        try:
            if self._fleet.ready:
                check_ttft(wait_s + work_ms / 1000, limit_s)
            self._queue.push(entry, wait_s)
        except Overloaded:
            _REFUSED.labels("predicted" if len(self._queue) < self._limits.max_waiting else "line_full").inc()
            raise
        if len(self._queue) == 1:
            self._drain.begin(time.monotonic())
        self._wakes[id(entry)] = asyncio.Event()
        return entry

    async def _wait_for_turn(self, entry: Waiting, running: Running, hashes: "_Hashes") -> Placement:
        wake = self._wakes[id(entry)]
        while True:
            wake.clear()
            if self._queue.head() is entry and not self._holds_back():
                placement = await self._try(running, hashes)
                if placement is not None and self._queue.head() is entry:
                    placement.begin()
                    self._drain.placed(entry.work_ms, time.monotonic())
                    self._leave_line(entry, is_served=True)
                    return placement
            if self._fleet.ready:  # else it is capacity that lacks, and may come back until the deadline
                self.check_patience(running)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_S):
                    await wake.wait()

    def _leave_line(self, entry: Waiting, *, is_served: bool) -> None:
        self._queue.remove(entry, is_served=is_served)
        self._wakes.pop(id(entry), None)
        self.nodes_changed()

    def _holds_back(self) -> bool:
        """Whether every node has enough to do for now."""
        computing = self._computing()
        return bool(computing) and policy.all_backlogged([link.state for link in computing])

    def _computing(self) -> list[NodeLink]:
        return self._fleet.accepting("prefill" if self._fleet.expects_prefill else "decode")

    def _limit_s(self, running: Running) -> float:
        """How long its first token may take."""
        return min((s for s in (running.job.max_ttft_s, self._limits.max_ttft_s) if s > 0), default=math.inf)

    def _predicted_wait_s(self, running: Running, work_ms: float) -> float:
        computing = self._computing()
        ahead_ms = self._queue.ahead_ms(running.job.tenant, running.job.priority, work_ms)
        backlog_ms = policy.least_queue_ms([link.state for link in computing])
        return (self._drain.wait_ms(ahead_ms, len(computing)) + backlog_ms) / 1000

    def _longest_ms(self, running: Running) -> float:
        """Computing all of the prompt, on any node."""
        computing = self._computing()
        if not computing:
            return 0.0
        state = computing[0].state
        return state.cost.prefill_ms(running.num_tokens, 0, state.chunk_tokens)

    async def _best(self, running: Running, hashes: "_Hashes") -> Choice | None:
        placement = await self._try(running, hashes, expect=False)
        return None if placement is None else placement.choice

    async def _try(self, running: Running, hashes: "_Hashes", *, expect: bool = True) -> Placement | None:
        """Where the request would go now, None where it has to wait."""
        if self._fleet.facts is None or not (self._fleet.ready or running.wants_prompt):
            return None
        cached = await self._lookup(running, hashes)
        facts = self._fleet.facts
        placement = None if facts is None else self._choose(running, facts, cached)
        if placement is not None and expect and placement.prefill is not None:
            self._replica.expect(placement.prefill.record.node_id, hashes.of(facts))
        return placement

    async def _lookup(self, running: Running, hashes: "_Hashes") -> dict[str, int]:
        facts = self._fleet.facts
        if facts is None:
            return {}
        cached = await self._replica.lookup(hashes.of(facts))
        if running.computed_by:  # the index may not know it yet
            cached = {**cached, running.computed_by: running.num_tokens // facts.block_size}
        return cached

    def _choose(self, running: Running, facts: ModelFacts, cached: dict[str, int]) -> Placement | None:
        alone = not self._fleet.expects_prefill
        decodes = self._accepting("decode", running)
        if running.wants_prompt:
            return self._choose_one(running, facts, cached, decodes if alone else self._fleet.accepting("prefill"))
        prefills = [] if alone else self._accepting("prefill", running)
        if not (prefills or alone):
            return None
        place = partial(self._cheapest, running, self._ask(running, facts), cached)
        found, cut = place(prefills, decodes), self._fleet.cut_pairs
        if cut and found is not None and found.prefill and found.decode:
            if not cut.has(found.prefill.record, found.decode.record):
                return found
            apart = [[link for link in prefills if not cut.has(link.record, to.record)] for to in decodes]
            options = [place(left, [to]) for left, to in zip(apart, decodes, strict=True)]
            found = min(filter(None, options), key=lambda option: option.choice.cost_ms, default=None)
        return found

    def _cheapest(
        self, running: Running, ask: Ask, cached: dict[str, int], prefills: list[NodeLink], decodes: list[NodeLink]
    ) -> Placement | None:
        """On one of each, or on one of `decodes` alone."""
        states = [link.state for link in prefills], [link.state for link in decodes]
        choice = policy.choose(ask, states[0], _held(prefills, cached), states[1], _held(decodes, cached))
        if choice is None:
            return None
        prefill = None if choice.prefill is None else prefills[choice.prefill]
        decode = None if choice.decode is None else decodes[choice.decode]
        return Placement(prefill, decode, choice, running.num_tokens, self.nodes_changed)

    def _accepting(self, role: str, running: Running) -> list[NodeLink]:
        """Where there are others, none of those that a transfer of this request has failed between.

        Two nodes may be cut off from one another while everybody else, this router included, reaches both.
        """
        links = self._fleet.accepting(role)
        return [link for link in links if link.record.node_id not in running.troubled] or links

    def _choose_one(
        self, running: Running, facts: ModelFacts, cached: dict[str, int], links: list[NodeLink]
    ) -> Placement | None:
        """A node for work on the prompt alone; scoring reads nothing from a cache."""
        work = running.job.prompt_work
        held = _held(links, {} if work is not None and work.num_logprobs >= 0 else cached)
        choice = policy.choose_prefill(self._ask(running, facts), [link.state for link in links], held)
        if choice is None or choice.prefill is None:
            return None
        return Placement(links[choice.prefill], None, choice, running.num_tokens, self.nodes_changed)

    def _ask(self, running: Running, facts: ModelFacts) -> Ask:
        costs = self._fleet.costs
        return Ask(
            num_tokens=running.num_tokens,
            block_size=facts.block_size,
            num_output_tokens=min(max(running.num_tokens_left - 1, 0), costs.output_tokens),
            transfer=costs.transfer,
            turn=next(self._turns),
        )

    async def _fleet_changed(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECHECK_S):
                await self._fleet.changed()


class _Hashes:
    """Block hashes of what an attempt begins with, computed once per model."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._fingerprint = ""
        self._hashes: list[BlockHash] = []

    def of(self, facts: ModelFacts | None) -> list[BlockHash]:
        if facts is not None and facts.model_fingerprint != self._fingerprint:
            root = root_hash(facts.model_fingerprint, self._running.job.cache_salt)
            self._hashes = block_hashes(self._running.token_ids, facts.block_size, root)
            self._fingerprint = facts.model_fingerprint
        return self._hashes


def _held(links: list[NodeLink], cached: dict[str, int]) -> list[int]:
    return [cached.get(link.record.node_id, 0) for link in links]
