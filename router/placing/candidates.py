"""Finds the nodes for a request's next attempt: those that accept requests, by cached prefix and predicted cost.

`placer` decides when the attempt starts.
"""

import itertools
from collections.abc import Callable
from functools import partial

from router.nodes.fleet_view import FleetFacts, FleetView
from router.nodes.link import NodeLink
from router.placing import policy
from router.placing.placement import Placement
from router.placing.policy import Ask
from router.placing.prefix_replica import PrefixReplica
from router.placing.prompt_hashes import PromptHashes
from router.running import Running

MAX_FAILED_TRANSFERS = 2  # per request; after that it runs on a decode node alone, since attempts are limited


class Candidates:
    """Chooses among the nodes of one router's fleet."""

    def __init__(self, fleet: FleetView, replica: PrefixReplica, on_change: Callable[[], None]) -> None:
        """`on_change` is called when work that was counted on a node is done or given up (see `Placement`)."""
        self._fleet, self._replica, self._on_change = fleet, replica, on_change
        self._turns = itertools.count()

    async def place(self, running: Running, hashes: PromptHashes) -> Placement | None:
        """Return where the request would run now, or None if it has to wait.

        Nodes with which a transfer of this request has failed come last: they may be unable to reach each other,
        although this router reaches both.
        """
        facts = self._fleet.facts
        if facts is None:
            return None
        cached = await self._replica.lookup(hashes.of(facts))
        if running.computed_by:  # the index may not have these blocks yet
            cached = {**cached, running.computed_by: running.num_tokens // facts.block_size}
        choose = partial(self._choose, running, self._fleet.facts or facts, cached)
        return (choose(running.troubled) if running.troubled else None) or choose(set())

    def _choose(
        self, running: Running, facts: FleetFacts, cached: dict[str, int], avoided: set[str]
    ) -> Placement | None:
        """Choose among the nodes that accept requests. Nodes of `avoided` are used only if their pool has no others."""
        alone = not self._fleet.expects_prefill or running.num_failed_transfers >= MAX_FAILED_TRANSFERS
        decodes = self._accepting("decode", avoided)
        if running.wants_prompt:
            return self._choose_one(running, facts, cached, decodes if alone else self._fleet.accepting("prefill"))
        prefills = [] if alone else self._accepting("prefill", avoided)
        if not (decodes and (prefills or alone)):
            return None
        place = partial(self._cheapest, running, self._ask(running, facts), cached)
        found, cut = place(prefills, decodes), self._fleet.cut_pairs
        if cut and found is not None and found.pair is not None:
            if not cut.has(*found.pair):
                return found
            apart = [[link for link in prefills if not cut.has(link.record, to.record)] for to in decodes]
            options = [place(left, [to]) for left, to in zip(apart, decodes, strict=True)]
            found = min(filter(None, options), key=lambda option: option.choice.cost_ms, default=None)
        return found

    def _cheapest(
        self, running: Running, ask: Ask, cached: dict[str, int], prefills: list[NodeLink], decodes: list[NodeLink]
    ) -> Placement | None:
        """Return the cheapest placement on one of `prefills` and one of `decodes`, or on one of `decodes` alone."""
        states = [link.state for link in prefills], [link.state for link in decodes]
        choice = policy.choose(ask, states[0], _held(prefills, cached), states[1], _held(decodes, cached))
        if choice is None:
            return None
        prefill = None if choice.prefill is None else prefills[choice.prefill]
        decode = None if choice.decode is None else decodes[choice.decode]
        return Placement(prefill, decode, choice, running.num_tokens, self._on_change)

    def _accepting(self, role: str, avoided: set[str]) -> list[NodeLink]:
        links = self._fleet.accepting(role)
        others = [link for link in links if link.record.node_id not in avoided] if avoided else links
        return others or links

    def _choose_one(
        self, running: Running, facts: FleetFacts, cached: dict[str, int], links: list[NodeLink]
    ) -> Placement | None:
        """Choose a node for prompt work. Cached prefixes do not count if log-probabilities are wanted."""
        work = running.job.prompt_work
        held = _held(links, {} if work is not None and work.num_logprobs >= 0 else cached)
        choice = policy.choose_prefill(self._ask(running, facts), [link.state for link in links], held)
        if choice is None or choice.prefill is None:
            return None
        return Placement(links[choice.prefill], None, choice, running.num_tokens, self._on_change)

    def _ask(self, running: Running, facts: FleetFacts) -> Ask:
        costs = self._fleet.costs
        return Ask(
            num_tokens=running.num_tokens,
            block_size=facts.block_size,
            num_output_tokens=min(max(running.num_tokens_left - 1, 0), costs.output_tokens),
            transfer=costs.transfer,
            turn=next(self._turns),
        )


def _held(links: list[NodeLink], cached: dict[str, int]) -> list[int]:
    return [cached.get(link.record.node_id, 0) for link in links]
