"""How a link handles single messages of its node. Streams and their ends are tested in `tests/integration/dispatch`."""

from types import SimpleNamespace
from typing import Any

import pytest

from baton.errors import NodeUnavailable, Overloaded
from baton.net.registry import NodeRecord
from baton.v1 import node_pb2, types_pb2
from router.nodes import link as node_link
from router.nodes import outbox
from router.nodes.fleet_costs import FleetCosts
from router.nodes.leg import Leg
from router.nodes.link import AVOID_S, STUCK_S, NodeLink

pytestmark = pytest.mark.anyio

EPOCH = 7


class Request(Leg):
    """A leg that records the calls to it."""

    def __init__(self, key: int, attempt: int = 0) -> None:
        self.key, self.attempt = key, attempt
        self.fresh: list[int] = []
        self.tokens: list[int] = []
        self.num_losses = 0

    def on_tokens(self, logprobs: Any) -> None:
        self.tokens, self.fresh = self.tokens + self.fresh, []

    def on_lost(self, node: Any) -> None:
        self.num_losses += 1


class Node:
    """A node that sends one message after the other."""

    def __init__(self, link: NodeLink) -> None:
        self.link = link
        self.sequence = self.num_changes = 0
        link._on_change = self._changed

    def _changed(self) -> None:
        self.num_changes += 1

    def say(self, **words: Any) -> None:
        batch = node_pb2.StepBatch(**({"epoch": EPOCH, "sequence": self.sequence} | words))
        self.link.on_batch(batch)
        self.sequence += 1

    def load(self, **fields: Any) -> None:
        self.say(load=types_pb2.Load(**({"state": types_pb2.NODE_STATE_READY, "num_blocks": 9} | fields)))


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(s=100.0)
    monkeypatch.setattr(node_link, "time", SimpleNamespace(monotonic=lambda: clock.s))
    return clock


@pytest.fixture
async def node(now: SimpleNamespace) -> Any:
    record = NodeRecord(node_id="d", role="decode", epoch=EPOCH, state="ready", address="127.0.0.1:1")
    link = NodeLink(record, "router", "", lambda: None, FleetCosts(), None, lambda link: True)
    yield Node(link)
    await link.close()


def token(key: int, index: int) -> dict[str, list[int]]:
    return {"keys": [key], "attempts": [0], "indices": [index], "token_ids": [50 + index]}


async def test_messages_count_once_and_none_is_missed(node: Node) -> None:
    leg = Request(1)
    node.load()
    node.link.attach(leg)
    node.say(**token(1, 0))
    node.say(sequence=1, **token(1, 1))  # one that was said already: whatever is in it
    node.sequence -= 1
    node.say(**token(1, 1))
    with pytest.raises(NodeUnavailable, match="missing"):
        node.say(sequence=4, **token(1, 2))
    with pytest.raises(NodeUnavailable, match="incarnation"):
        node.say(epoch=EPOCH - 1, **token(1, 2))
    assert leg.tokens == [50, 51]


async def test_a_node_lives_from_its_first_load_on(node: Node, now: SimpleNamespace) -> None:
    link, leg = node.link, Request(1)
    assert (link.health, link.accepting) == ("starting", False)
    with pytest.raises(NodeUnavailable):
        link.attach(leg)
    link.cancel(leg)
    link.grant(node_pb2.Granted())
    assert not link._outbox._batches  # nobody is there to be told
    node.load()
    assert (link.health, link.accepting, node.num_changes) == ("ready", True, 1)
    link.avoid()
    assert (link.serves, link.accepting) == (True, False)
    now.s += AVOID_S
    assert link.accepting
    node.load(state=types_pb2.NODE_STATE_DRAINING)
    assert (link.health, link.draining, link.serves) == ("draining", True, False)


async def test_a_node_that_beats_and_makes_no_step_is_stuck_until_it_does(node: Node, now: SimpleNamespace) -> None:
    link, leg = node.link, Request(1)
    node.load(num_running=1, num_steps=5)
    link.attach(leg)
    now.s += STUCK_S
    node.load(num_running=1, num_steps=5)
    assert (link.health, leg.num_losses) == ("ready", 0)
    now.s += 0.1
    for _ in range(2):
        node.load(num_running=1, num_steps=5)
        assert (link.health, link.accepting, leg.num_losses, link.legs) == ("stuck", False, 1, {})
    node.load(num_running=1, num_steps=6)
    assert link.accepting
    now.s += 2 * STUCK_S
    node.load(num_steps=6)  # nothing runs there: it has nothing to do
    assert link.accepting


async def test_a_message_ends_the_suspicion(node: Node) -> None:
    link, leg = node.link, Request(1)
    node.load()
    link.attach(leg)
    link._suspect()
    assert (link.health, link.accepting, link.alive, leg.num_losses) == ("lost", False, True, 1)
    assert node.num_changes == 2
    node.say()
    assert (link.health, link.accepting) == ("ready", True)


async def test_a_leg_is_detached_by_itself_alone(node: Node) -> None:
    older, newer = Request(1, 0), Request(1, 1)
    node.load()
    node.link.attach(older)
    node.link.attach(newer)
    node.link.detach(older)
    assert node.link.legs == {1: newer}
    node.link.detach(newer)
    node.link.detach(newer)
    assert node.link.legs == {}


async def test_grants_and_cancels_are_queued_for_a_live_node(node: Node) -> None:
    node.load()
    node.link.grant(node_pb2.Granted(key=4, attempt=2))
    node.link.cancel(Request(5, 1))
    [batch] = node.link._outbox._batches
    assert [(word.key, word.attempt) for word in batch.proto.grants] == [(4, 2)]
    assert (list(batch.proto.cancelled_keys), list(batch.proto.cancelled_attempts)) == ([5], [1])
    node.link._outbox.close()


async def test_nothing_is_begun_on_a_node_that_does_not_read(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "MAX_BYTES", 10)
    node.load()
    first, second = Request(1), Request(2)
    generation = types_pb2.Generation(key=1, token_ids=bytes(20))
    node.link.start(first, node_pb2.RouterBatch(starts=[node_pb2.Start(generation=generation)]))
    assert not node.link.accepting
    with pytest.raises(Overloaded):
        node.link.start(second, node_pb2.RouterBatch())
    assert node.link.legs == {1: first}
    node.link._outbox.close()


async def test_the_reason_for_a_failed_attach_is_logged_once(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """Of a node with another service token the log would say that it was found, and no more."""
    for why in ("UNAUTHENTICATED", "UNAUTHENTICATED", "UNAVAILABLE"):
        node.link._down(why)
    node.load()
    node.link._down("the stream ended")
    node.link._down("the stream ended")
    assert [record.getMessage() for record in caplog.records] == [
        "cannot attach to node d: UNAUTHENTICATED",
        "cannot attach to node d: UNAVAILABLE",
        "lost node d: the stream ended (0 requests on it)",
    ]


async def test_where_its_stream_ends_legs_hear_of_it_once(node: Node) -> None:
    leg = Request(1)
    node.load()
    node.link.attach(leg)
    await node.link.close()
    node.link._down("once more")
    assert (leg.num_losses, node.link.health, node.link.legs) == (1, "lost", {})
    assert node.num_changes == 3
