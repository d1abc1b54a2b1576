"""Routers that attach, stay away, do not read, or leave; and a node that drains."""

import asyncio

import pytest

from baton.errors import Cancelled, NodeUnavailable, Overloaded
from baton.node.session import MAX_OUTBOX_ROWS
from baton.node.sessions import GONE_S, Sessions
from tests.unit.baton.node.stand_ins import Clock, FakeLeg
from tests.waiting import until

pytestmark = pytest.mark.anyio


async def test_the_log_uses_the_routers_request_ids(sessions: Sessions, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        sessions.open(FakeLeg(1, attempt=2))
    assert [(vars(record)["request_id"], record.getMessage()) for record in caplog.records] == [
        ("r1", "2 tokens, attempt 2")
    ]


async def test_a_router_whose_stream_ends_loses_its_requests(sessions: Sessions, clock: Clock) -> None:
    mine, others = FakeLeg(1), FakeLeg(1, router_id="other")
    session, stream = sessions.attach("router")
    sessions.attach("other")
    sessions.open(mine)
    sessions.open(others)
    session.take()
    sessions.lose(session, stream)
    assert session.wake.is_set()  # whoever writes to the stream has to end
    assert (mine.num_cancels, others.num_cancels) == (1, 0)
    assert sessions.num_legs == 1
    clock.now += GONE_S - 0.1
    sessions.sweep()
    assert sessions.session("router") is session  # it knows what has been cancelled
    clock.now += 0.2
    sessions.sweep()
    assert sessions.session("router") is not session


async def test_a_router_that_attaches_again_starts_without_requests(sessions: Sessions, clock: Clock) -> None:
    leg, later, others = FakeLeg(1), FakeLeg(2), FakeLeg(1, router_id="other")
    session, stream = sessions.attach("router")
    for each in (leg, others):
        sessions.open(each)
    session.add_tokens([leg.generation.key], [0], [0], [11])
    session.take()
    assert not session.beat_due
    session.add_tokens([leg.generation.key], [0], [1], [12])
    again, newer = sessions.attach("router")
    assert again is session
    assert session.beat_due  # its first message carries the load
    assert session.wake.is_set()
    assert (leg.num_cancels, others.num_cancels) == (1, 0)
    assert session.is_empty
    with pytest.raises(Cancelled):
        sessions.open(FakeLeg(1))  # what is still on its way from the old stream
    sessions.open(later)
    sessions.lose(again, stream)  # the old stream's end, noticed late
    clock.now += 2 * GONE_S
    sessions.sweep()
    assert session.stream is newer
    assert later.num_cancels == 0


async def test_a_router_that_never_attached_counts_as_gone(sessions: Sessions, clock: Clock) -> None:
    leg = FakeLeg(1)
    sessions.open(leg)
    clock.now += GONE_S + 0.1
    sessions.sweep()
    assert leg.num_cancels == 1


async def test_a_full_outbox_affects_only_its_own_router(sessions: Sessions) -> None:
    slow, fine = FakeLeg(1), FakeLeg(1, router_id="other")
    session, _ = sessions.attach("router")
    other, stream = sessions.attach("other")
    sessions.open(slow)
    sessions.open(fine)
    other.add_tokens([fine.generation.key], [0], [0], [5])
    many = MAX_OUTBOX_ROWS + 1
    session.add_tokens([slow.generation.key] * many, [0] * many, range(many), [5] * many)
    sessions.flush()
    assert (slow.num_cancels, fine.num_cancels) == (1, 0)
    assert session.stream is None
    assert session.is_empty
    assert other.stream is stream
    assert not other.is_empty


async def test_a_draining_node_accepts_no_new_requests(sessions: Sessions) -> None:
    sessions.open(FakeLeg(1))
    sessions.draining = True
    with pytest.raises(NodeUnavailable):
        sessions.open(FakeLeg(2))
    assert sessions.num_legs == 1


async def test_a_beat_drops_a_router_whose_outbox_is_full(sessions: Sessions) -> None:
    leg = FakeLeg(1)
    session, _ = sessions.attach("router")
    sessions.open(leg)
    for _ in range(MAX_OUTBOX_ROWS + 1):
        session.add_failed(5, 0, Overloaded("full"))
    sessions.beat()
    assert (leg.num_cancels, session.stream) == (1, None)


async def test_too_many_routers_are_refused(sessions: Sessions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baton.node.sessions.MAX_SESSIONS", 2)
    sessions.attach("one")
    sessions.open(FakeLeg(1, router_id="two"))
    with pytest.raises(Overloaded):
        sessions.attach("three")
    sessions.attach("two")


async def test_requests_of_routers_that_are_gone_are_cancelled(
    sessions: Sessions, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.node.sessions.BEAT_S", 0.001)
    sessions.open(FakeLeg(1))
    clock.now += GONE_S + 0.1
    running = asyncio.create_task(sessions.run())
    await until(lambda: not sessions.num_legs)
    running.cancel()
