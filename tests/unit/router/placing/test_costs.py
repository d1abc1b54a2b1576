"""The cost of the options for a request: the sum in the docstring of `router.placing.policy`, part by part."""

from typing import Any

import pytest

from baton.step_cost import StepCost
from router.nodes.fleet_costs import TransferCost
from router.nodes.state import NodeState
from router.placing import policy
from router.placing.policy import FRESH_MS, PRESSURE, SCARCITY_MS, Ask

ASK = Ask(num_tokens=320, block_size=16, num_output_tokens=10, transfer=TransferCost(latency_ms=1.0, block_ms=50.0))
SLOWER_MS = 1 + 0.32  # each step, by this request


def node(**fields: Any) -> NodeState:
    cost = StepCost(prefill_token_ms=1.0, decode_base_ms=10.0, decode_request_ms=1.0, decode_token_ms=0.001)
    return NodeState(cost=cost, **{"num_blocks": 1000, "num_free_blocks": 1000, **fields})


BUSY = {"num_running": 4, "num_context_tokens": 2000, "num_waiting": 3, "queue_ms": 7.0}
BUSY_STEP_MS = 10 + 4 + 2 + SLOWER_MS


def test_decoding_costs_its_steps_and_what_they_cost_those_beside_it() -> None:
    assert policy.decode_ms(node(), ASK, 21) == pytest.approx(10 * (10 + SLOWER_MS))
    for_others_ms = 10 * SLOWER_MS * 4 + BUSY_STEP_MS * 3
    assert policy.decode_ms(node(**BUSY), ASK, 21) == pytest.approx(10 * BUSY_STEP_MS + for_others_ms)


def test_the_last_tenth_of_the_blocks_gets_dearer_as_it_shrinks() -> None:
    costs = [policy.decode_ms(node(num_free_blocks=num + 21), ASK, 21) for num in (1000, 100, 50, 0)]
    assert [ms - costs[0] for ms in costs] == pytest.approx([0, 0, 0.5 * SCARCITY_MS, SCARCITY_MS])


def test_a_prompt_on_a_decode_node_takes_its_place_in_steps_and_holds_up_all_others() -> None:
    busy = node(**BUSY, chunk_tokens=100)
    for num_cached, num_steps, fresh_ms in ((0, 4, FRESH_MS), (10, 2, 0.0)):
        choice = policy.choose(ASK, [], [], [busy], [num_cached])
        assert choice is not None
        own_ms = 320 - 16 * num_cached + num_steps * (4 + 2)
        decode_ms = policy.decode_ms(busy, ASK, choice.num_missing_blocks)
        assert choice.prompt_ms == pytest.approx(own_ms)
        assert choice.cost_ms == pytest.approx(decode_ms + 7 + own_ms * (1 + 4 + 3) + fresh_ms)


def test_a_pair_costs_what_its_transfer_shows_besides_both_parts() -> None:
    choice = policy.choose(ASK, [node(queue_ms=7.0)], [10], [node()], [0])
    assert choice is not None
    assert choice.decode is not None
    shown_ms = ASK.transfer.exposed_ms(21, 160)
    assert shown_ms > 500
    assert choice.cost_ms == pytest.approx(7 + 160 + shown_ms + policy.decode_ms(node(), ASK, 21))


def test_work_costs_those_that_come_later_the_more_the_busier_the_pool() -> None:
    assert policy.pressure([]) == policy.pressure([node()]) == 0
    assert policy.pressure([node(utilization=0.5), node(utilization=0.9)]) == pytest.approx(PRESSURE * 0.7 / 0.3)


@pytest.mark.parametrize(("least", "near", "far"), [(10.0, 11.0, 11.1), (1000.0, 1010.0, 1010.1)])
def test_nodes_of_nearly_equal_cost_are_chosen_in_turn(least: float, near: float, far: float) -> None:
    assert [policy.cheapest([far, least, near], turn) for turn in range(3)] == [1, 2, 1]
