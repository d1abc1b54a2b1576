"""Where a request goes after a failed transfer: to other nodes with room, else to the same ones in another pair."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from baton.net.registry import NodeRecord
from baton.request import SamplingParams
from router.job import Job
from router.nodes.cut_pairs import CutPairs
from router.nodes.fleet_costs import FleetCosts
from router.nodes.state import NodeState
from router.placing.candidates import MAX_FAILED_TRANSFERS, Candidates
from router.running import Running

NUM_BLOCKS = 100


class Fleet:
    """Two prefill and two decode nodes, none of which has anything to do."""

    def __init__(self) -> None:
        self.expects_prefill = True
        self.facts = SimpleNamespace(block_size=16)
        self.costs, self.cut_pairs = FleetCosts(), CutPairs()
        self.links = {name: self._link(name) for name in ("prefill-0", "prefill-1", "decode-0", "decode-1")}

    def _link(self, name: str) -> Any:
        role = name.partition("-")[0]
        record = NodeRecord(node_id=name, role=role, epoch=1, state="ready", address="127.0.0.1:1")
        state = NodeState(num_blocks=NUM_BLOCKS, num_free_blocks=NUM_BLOCKS)
        state.cost.prefill_token_ms = 1.0
        return SimpleNamespace(record=record, state=state)

    def accepting(self, role: str) -> list[Any]:
        return [link for link in self.links.values() if link.record.role == role]

    def fill(self, *names: str) -> None:
        for name in names:
            self.links[name].state.num_free_blocks = 0

    def place_after_failure(self, *, num_failed: int = 1) -> dict[str, str] | None:
        """Where a request goes whose transfers from prefill-0 to decode-0 have failed."""
        job = Job(request_id="r", token_ids=[1] * 200, sampling=SamplingParams(max_tokens=9), deadline_s=1e9)
        running = Running(job, None, 1)  # type: ignore[arg-type]
        running.troubled, running.num_failed_transfers = {"prefill-0", "decode-0"}, num_failed
        self.cut_pairs.failed(self.links["prefill-0"].record, self.links["decode-0"].record)
        replica = SimpleNamespace(lookup=self._lookup)
        candidates = Candidates(self, replica, lambda: None)  # type: ignore[arg-type]
        placement = asyncio.run(candidates.place(running, SimpleNamespace(of=lambda facts: [])))  # type: ignore[arg-type]
        return dict(placement.names) if placement else None

    async def _lookup(self, hashes: Any) -> dict[str, int]:
        return {}


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        ((), {"prefill": "prefill-1", "decode": "decode-1"}),
        (("decode-1",), {"prefill": "prefill-1", "decode": "decode-0"}),
        (("decode-0", "decode-1"), None),
    ],
)
def test_other_nodes_are_tried_first(full: tuple[str, ...], expected: dict[str, str] | None) -> None:
    fleet = Fleet()
    fleet.fill(*full)
    assert fleet.place_after_failure() == expected


def test_a_pool_of_one_node_keeps_it() -> None:
    fleet = Fleet()
    del fleet.links["decode-1"]
    assert fleet.place_after_failure() == {"prefill": "prefill-1", "decode": "decode-0"}


def test_a_decode_node_computes_alone_what_could_not_be_shipped() -> None:
    fleet = Fleet()
    assert fleet.place_after_failure(num_failed=MAX_FAILED_TRANSFERS) == {"decode": "decode-1"}
    fleet.fill("decode-1")
    assert fleet.place_after_failure(num_failed=MAX_FAILED_TRANSFERS) == {"decode": "decode-0"}
