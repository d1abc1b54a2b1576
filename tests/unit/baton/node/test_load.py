import pytest
from prometheus_client import REGISTRY

from baton.errors import Overloaded
from baton.node import load as node_load
from baton.node.load import LoadBoard
from baton.v1 import types_pb2


def blocks(state: str) -> float | None:
    return REGISTRY.get_sample_value("baton_kv_blocks", {"state": state})


def test_every_block_is_counted_once() -> None:
    load = types_pb2.Load(num_blocks=100, num_free_blocks=60, num_running=3, num_waiting=2)
    LoadBoard().publish(load, num_cached=15, num_leased=12, num_preemptions=0)
    counts = {state: blocks(state) for state in ("free", "cached", "leased", "running")}
    assert counts == {"free": 45, "cached": 15, "leased": 12, "running": 28}
    assert sum(count or 0 for count in counts.values()) == 100


def test_heartbeats_carry_the_state_and_the_queue_of_the_moment() -> None:
    board = LoadBoard()
    board.publish(types_pb2.Load(num_waiting=2), num_cached=0, num_leased=0, num_preemptions=0)
    board.state, board.num_queued = types_pb2.NODE_STATE_DRAINING, 3
    assert (board.load().state, board.load().num_waiting) == (types_pb2.NODE_STATE_DRAINING, 5)
    assert board.load().num_waiting == 5  # and not more each time


def test_the_count_of_preemptions_never_decreases() -> None:
    board = LoadBoard()
    before = REGISTRY.get_sample_value("baton_preemptions_total") or 0
    for total in (2, 2, 5):
        board.publish(types_pb2.Load(), num_cached=0, num_leased=0, num_preemptions=total)
    assert REGISTRY.get_sample_value("baton_preemptions_total") == before + 5


def test_a_request_is_refused_when_too_many_are_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_load, "MAX_WAITING", 5)
    board = LoadBoard()
    board.publish(types_pb2.Load(num_waiting=2), num_cached=0, num_leased=0, num_preemptions=0)
    board.num_queued = 2
    board.check_room()
    board.num_queued = 3
    with pytest.raises(Overloaded):
        board.check_room()
