"""A pair whose transfers fail is avoided, for longer each time, until one works."""

import pytest

from baton.net.registry import NodeRecord
from router.nodes import cut_pairs
from router.nodes.cut_pairs import MAX_PAUSE_S, MIN_PAUSE_S, TRIAL_S, CutPairs


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def node(node_id: str, epoch: int = 1) -> NodeRecord:
    role = node_id.partition("-")[0]
    return NodeRecord(node_id=node_id, role=role, epoch=epoch, state="ready", address="127.0.0.1:1")


P, D = node("prefill-0"), node("decode-0")


def test_pauses_grow_and_end():
    clock = Clock()
    pairs = CutPairs(clock)
    assert not pairs
    lengths = []
    for _ in range(6):
        pairs.failed(P, D)
        pairs.failed(P, D)  # of the same pause
        began_s = clock.now_s
        while pairs.has(P, D):
            clock.now_s += 0.5
        lengths.append(clock.now_s - began_s)
    assert lengths == [5, 10, 20, 40, 60, 60] == [min(MIN_PAUSE_S * 2**n, MAX_PAUSE_S) for n in range(6)]


def test_it_is_the_pair_of_these_incarnations_only():
    pairs = CutPairs(Clock())
    pairs.failed(P, D)
    others = [(P, node("decode-1")), (node("prefill-1"), D), (P, node("decode-0", 2)), (node("prefill-0", 2), D)]
    assert pairs.has(P, D)
    assert not any(pairs.has(*pair) for pair in others)


def test_what_was_accepted_clears_the_record():
    clock = Clock()
    pairs = CutPairs(clock)
    pairs.failed(P, D)
    pairs.carried(P, D)
    assert not pairs.has(P, D)
    pairs.failed(P, D)
    clock.now_s += MIN_PAUSE_S
    assert not pairs.has(P, D)


def test_after_a_pause_one_request_finds_out():
    clock = Clock()
    pairs = CutPairs(clock)
    pairs.trying(P, D)
    assert not pairs
    pairs.failed(P, D)
    assert pairs
    clock.now_s += MIN_PAUSE_S - 0.1
    pairs.trying(P, D)  # it was placed before
    assert pairs.has(P, D)
    clock.now_s += 0.1
    assert not pairs.has(P, D)
    pairs.trying(P, D)
    assert pairs.has(P, D)  # for whoever comes next
    clock.now_s += TRIAL_S - 0.1
    pairs.failed(P, D)
    clock.now_s += 2 * MIN_PAUSE_S - 0.1
    assert pairs.has(P, D)


def test_a_trial_that_does_not_fail_lets_others_follow():
    clock = Clock()
    pairs = CutPairs(clock)
    pairs.failed(P, D)
    clock.now_s += MIN_PAUSE_S
    pairs.trying(P, D)
    clock.now_s += TRIAL_S
    for _ in range(2):
        pairs.trying(P, D)
        assert not pairs.has(P, D)


def test_beyond_a_bound_those_that_failed_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_pairs, "MAX_PAIRS", 2)
    pairs = CutPairs(Clock())
    for name in ("decode-0", "decode-1", "decode-0", "decode-2"):
        pairs.failed(P, node(name))
    assert [pairs.has(P, node(f"decode-{n}")) for n in range(3)] == [True, False, True]
