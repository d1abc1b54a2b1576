from typing import Any

import pytest

from baton.step_cost import StepCost
from baton.v1 import types_pb2
from router.nodes.fleet_costs import FleetCosts, TransferCost
from router.nodes.state import ASSUMED_DECODE, FADING_S, MAX_UTILIZATION, NodeState, known_cost

TOLD = types_pb2.StepCost(prefill_base_ms=2, prefill_token_ms=0.5, decode_base_ms=9, decode_request_ms=1)


def load(**fields: Any) -> types_pb2.Load:
    return types_pb2.Load(**{"num_blocks": 100, "num_free_blocks": 90, **fields})


def test_what_was_sent_counts_until_the_node_tells_its_load() -> None:
    state = NodeState()
    state.take_load(load(num_waiting_tokens=100, step_cost=TOLD), StepCost(), 0.0)
    assert state.queue_ms == 50
    state.send_prompt(30.0, 0.0)
    state.send_decode(500, 7)
    assert (state.queue_ms, state.num_running, state.num_context_tokens, state.num_free_blocks) == (80, 1, 500, 83)
    state.prompt_done(30.0)
    state.decode_done(500, 7)
    assert (state.queue_ms, state.num_running, state.num_context_tokens, state.num_free_blocks) == (50, 0, 0, 90)
    state.prompt_done(1000.0)
    assert (state.queue_ms, state.num_waiting) == (0, 0)
    state.take_load(load(num_waiting_tokens=10, prefill_tokens_per_s=100.0), StepCost(), 1.0)
    assert state.queue_ms == 100


def test_what_a_node_tells_is_what_counts() -> None:
    state = NodeState(num_waiting=9, num_running=9, num_context_tokens=9)
    state.send_prompt(1000.0, 0.0)
    told = {"num_waiting": 3, "num_running": 4, "num_reserved": 2, "num_context_tokens": 900}
    told |= {"num_waiting_tokens": 100, "prefill_tokens_per_s": 1000.0, "step_cost": TOLD}
    state.take_load(load(max_num_batched_tokens=512, **told), StepCost(), FADING_S)
    assert state.queue_ms == 100  # as fast as it was, not as its steps would be
    assert (state.chunk_tokens, state.num_waiting, state.num_running, state.num_context_tokens) == (512, 3, 6, 900)
    assert state.utilization == pytest.approx(1 / FADING_S / 2.718, rel=1e-3)
    state.prompt_done(50.0)
    state.decode_done(500, 7)
    assert (state.num_waiting, state.num_running, state.num_context_tokens) == (2, 5, 400)
    state.take_load(load(), StepCost(), FADING_S)
    assert state.chunk_tokens == 512  # it does not change
    state.decode_done(500, 7)
    assert (state.num_running, state.num_context_tokens) == (0, 0)


def test_work_sent_lately_fades() -> None:
    state = NodeState()
    for _ in range(5):
        state.send_prompt(1000.0, 0.0)
    assert state.utilization == pytest.approx(5 / FADING_S)
    state.fade(FADING_S)
    assert state.utilization == pytest.approx(5 / FADING_S / 2.718, rel=1e-3)


def test_a_node_is_never_taken_for_full_of_work() -> None:
    state = NodeState()
    state.send_prompt(1e9, 0.0)
    assert state.utilization == MAX_UTILIZATION


def test_all_figures_of_a_node_or_else_of_its_fleet_are_taken() -> None:
    figures = {
        "prefill_base_ms": 2.0, "prefill_token_ms": 0.5, "prefill_context_ms": 0.25,
        "decode_base_ms": 9.0, "decode_request_ms": 1.0, "decode_token_ms": 0.125,
    }  # fmt: skip
    assert known_cost(load(step_cost=types_pb2.StepCost(**figures)), StepCost()) == StepCost(**figures)
    assert known_cost(load(), StepCost(**figures)) == StepCost(**figures)


def test_a_node_without_figures_of_its_own_is_taken_for_its_fleet() -> None:
    assert known_cost(load(), StepCost()).prefill_token_ms == 0.5  # assumed
    assert known_cost(load(), StepCost()).decode_base_ms == ASSUMED_DECODE.decode_base_ms
    assert known_cost(load(prefill_tokens_per_s=500.0), StepCost()).prefill_token_ms == 2
    costs = FleetCosts()
    costs.take_load(load(step_cost=TOLD))
    assert known_cost(load(), costs.pooled).prefill_ms(100, 0, 50) == 54
    assert known_cost(load(step_cost=types_pb2.StepCost(prefill_token_ms=7)), costs.pooled).prefill_ms(10, 0, 50) == 70
    assert known_cost(load(), costs.pooled).decode_base_ms == 9


@pytest.mark.parametrize("block_ms", [0.01, 1.0, 20.0])
def test_the_bandwidth_shows_in_transfers_that_were_not_hidden(block_ms: float) -> None:
    cost = TransferCost()
    for num_blocks in [10, 40, 100, 200] * 100:
        prefill_ms = 50.0
        cost.note(num_blocks, prefill_ms, 3.0 + max(num_blocks * block_ms - prefill_ms, 0.0))
    exposed = 3.0 + max(200 * block_ms - 10.0, 0.0)
    assert cost.exposed_ms(200, 10.0) == pytest.approx(exposed, rel=0.35, abs=50.0)
    if block_ms < 5:  # else none was hidden, and latency is lost in the rest
        assert cost.exposed_ms(10, 1000.0) == pytest.approx(3.0, abs=2)


def test_one_stalled_transfer_does_not_spoil_the_figures() -> None:
    cost = TransferCost()
    cost.note(1, 1.0, 60_000.0)
    for _ in range(100):
        cost.note(100, 50.0, 3.0)
    assert cost.exposed_ms(100, 50.0) < 10
