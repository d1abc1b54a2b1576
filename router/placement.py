"""Which nodes serve a request's next attempt, and when: candidates and cached prefixes come together here.

New requests are placed in the order in which they came: where no node has room, the first of them waits and the others
wait behind it. A request that some node had already taken up does not queue again.
"""

import asyncio
import contextlib
import itertools
import time

import msgspec

from baton.errors import Overloaded
from baton.prefix_hash import block_hashes, root_hash
from router import policy
from router.fleet_view import FleetView, ModelFacts
from router.node_link import NodeLink
from router.policy import Ask, Choice
from router.prefix_replica import PrefixReplica
from router.running import Running

RECHECK_S = 0.25  # nodes that were avoided come back without saying so


class Placement(msgspec.Struct, eq=False):
    """The nodes of one attempt, and the work that they are counted with until they have told their load again."""

    prefill: NodeLink | None  # None: all on the decode node
    decode: NodeLink | None  # None: only one token is wanted
    choice: Choice
    num_tokens: int
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
        alone = not self._fleet.expects_prefill
        decodes = self._accepting("decode", running)
        if running.wants_prompt:
            return self._choose_one(running, facts, cached, decodes if alone else self._fleet.accepting("prefill"))
        prefills = [] if alone else self._accepting("prefill", running)
        if not (prefills or alone):
            return None
        choice = policy.choose(
            self._ask(running, facts),
            [link.state for link in prefills],
            _held(prefills, cached),
            [link.state for link in decodes],
            _held(decodes, cached),
        )
        if choice is None:
            return None
        prefill = None if choice.prefill is None else prefills[choice.prefill]
        decode = None if choice.decode is None else decodes[choice.decode]
        return Placement(prefill, decode, choice, running.num_tokens)

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
        return Placement(links[choice.prefill], None, choice, running.num_tokens)

    def _ask(self, running: Running, facts: ModelFacts) -> Ask:
        costs = self._fleet.costs
        return Ask(
            num_tokens=running.num_tokens,
            block_size=facts.block_size,
            num_output_tokens=min(max(running.num_tokens_left - 1, 0), costs.output_tokens),
            transfer=costs.transfer,
            turn=next(self._turns),
        )

    async def _wait_for_change(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECHECK_S):
                await self._fleet.changed()


def _held(links: list[NodeLink], cached: dict[str, int]) -> list[int]:
    return [cached.get(link.record.node_id, 0) for link in links]
