"""Which nodes serve a request's next attempt, and when: candidates and cached prefixes come together here.

New requests are placed in the order in which they came: where no node has room, the first of them waits and the others
wait behind it. A request that some node had already taken up does not queue again.
"""

import asyncio
import contextlib
import itertools

import msgspec

from baton.errors import Overloaded
from baton.prefix_hash import block_hashes, root_hash
from router import policy
from router.fleet_view import FleetView, ModelFacts
from router.node_link import NodeLink
from router.policy import NodeView
from router.prefix_replica import PrefixReplica
from router.running import Running

RECHECK_S = 0.25  # nodes that were avoided come back without saying so


class Placement(msgspec.Struct, eq=False):
    """The nodes of one attempt, and the work that they are counted with until they have told their load again."""

    prefill: NodeLink | None  # None: all on the decode node
    decode: NodeLink | None  # None: only one token is wanted
    num_uncached_tokens: int
    num_missing_blocks: int

    def begin(self) -> None:
        """Count the work."""
        if self._computing is not None:
            self._computing.sent(self.num_uncached_tokens, 0, 0)
        if self.decode is not None:
            self.decode.sent(0, 1, self.num_missing_blocks)

    def computed(self) -> None:
        """The prompt is computed. Idempotent."""
        if self._computing is not None:
            self._computing.sent(-self.num_uncached_tokens, 0, 0)
        self.num_uncached_tokens = 0

    def end(self) -> None:
        """The attempt is over."""
        self.computed()
        if self.decode is not None:
            self.decode.sent(0, -1, -self.num_missing_blocks)

    @property
    def _computing(self) -> NodeLink | None:
        return self.prefill or self.decode


class Placer:
    """Places the requests of one router."""

    def __init__(self, fleet: FleetView, replica: PrefixReplica, max_full_wait_s: float) -> None:
        """A new request that finds all nodes full for `max_full_wait_s` is told to come again."""
        self._fleet = fleet
        self._replica = replica
        self._max_full_wait_s = max_full_wait_s
        self._turns = itertools.count()
        self._queue = asyncio.Lock()

    async def place(self, running: Running) -> Placement:
        """Waits for nodes to come or to have room. Raises Overloaded. The deadline is the caller's."""
        taken_up = running.usage.num_attempts > 0
        cached = await self._lookup(running)
        async with contextlib.nullcontext() if taken_up else self._queue:
            while True:
                if self._fleet.facts is not None and (self._fleet.ready or running.wants_prompt):
                    placement = self._choose(running, self._fleet.facts, cached)
                    if placement is not None:
                        placement.begin()
                        return placement
                    self.check_patience(running)
                await self._wait_for_change()
                cached = await self._lookup(running)

    async def _lookup(self, running: Running) -> dict[str, int]:
        facts = self._fleet.facts
        if facts is None:
            return {}
        root = root_hash(facts.model_fingerprint, running.job.cache_salt)
        cached = await self._replica.lookup(block_hashes(running.token_ids, facts.block_size, root))
        if running.computed_by:  # the index may not know it yet
            cached = {**cached, running.computed_by: running.num_tokens // facts.block_size}
        return cached

    def check_patience(self, running: Running) -> None:
        """Raise Overloaded for a request that has waited long enough. One that has begun is carried to its end."""
        if running.age_s > self._max_full_wait_s and not running.output:
            raise Overloaded("all nodes are full at present")

    def _choose(self, running: Running, facts: ModelFacts, cached: dict[str, int]) -> Placement | None:
        num_tokens, size, turn = running.num_tokens, facts.block_size, next(self._turns)
        alone = not self._fleet.expects_prefill
        if running.wants_prompt:
            return self._choose_one(running, facts, cached, "decode" if alone else "prefill")
        decodes = self._fleet.accepting("decode")
        views = _views(decodes, cached)
        at = policy.choose_decode(views, num_tokens, size, turn, prefills_itself=alone)
        if at is None:
            return None
        num_missing = policy.num_missing_blocks(views[at], num_tokens, size)
        num_uncached = policy.num_uncached_tokens(views[at], num_tokens, size)
        if alone or (views[at].num_cached_blocks and num_uncached < size):  # nearly all of it is there
            return Placement(None, decodes[at], num_uncached, num_missing)
        decode = decodes[at] if running.num_tokens_left > 1 else None
        prefills = self._fleet.accepting("prefill")
        views = _views(prefills, cached)
        at = policy.choose_prefill(views, num_tokens, size, turn)
        if at is None:
            return None
        return Placement(prefills[at], decode, policy.num_uncached_tokens(views[at], num_tokens, size), num_missing)

    def _choose_one(self, running: Running, facts: ModelFacts, cached: dict[str, int], role: str) -> Placement | None:
        """A node for work on the prompt alone; scoring reads nothing from a cache."""
        work = running.job.prompt_work
        links = self._fleet.accepting(role)
        views = _views(links, {} if work is not None and work.num_logprobs >= 0 else cached)
        at = policy.choose_prefill(views, running.num_tokens, facts.block_size, next(self._turns))
        if at is None:
            return None
        num_uncached = policy.num_uncached_tokens(views[at], running.num_tokens, facts.block_size)
        return Placement(links[at], None, num_uncached, 0)

    async def _wait_for_change(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECHECK_S):
                await self._fleet.changed()


def _views(links: list[NodeLink], cached: dict[str, int]) -> list[NodeView]:
    return [link.view(cached.get(link.record.node_id, 0)) for link in links]
