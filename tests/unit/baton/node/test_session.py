"""One router's session on a node: its legs and attempts, and the messages about them."""

import pytest

from baton.errors import Cancelled, InvalidRequest, Overloaded
from baton.node.session import MAX_OUTBOX_ROWS
from baton.node.sessions import Sessions
from baton.request import FinishReason
from baton.v1 import node_pb2, transfer_pb2, types_pb2
from tests.unit.baton.node.stand_ins import FakeLeg

pytestmark = pytest.mark.anyio


async def test_rows_of_all_requests_leave_as_one_batch(sessions: Sessions) -> None:
    one, two = FakeLeg(1), FakeLeg(2, attempt=3)
    session, _ = sessions.attach("router")
    session.take()
    for leg in (one, two):
        sessions.open(leg)
        session.add_tokens([leg.generation.key], [leg.generation.attempt], [5], [40 + leg.generation.key])
    sessions.flush()
    assert session.wake.is_set()
    batch = session.take()
    assert (list(batch.keys), list(batch.attempts), list(batch.indices)) == ([1, 2], [0, 3], [5, 5])
    assert list(batch.token_ids) == [41, 42]
    assert not session.wake.is_set()
    assert not session.take().keys


async def test_a_newer_attempt_replaces_an_older_one(sessions: Sessions) -> None:
    old, new = FakeLeg(1, attempt=0), FakeLeg(1, attempt=1)
    sessions.open(old)
    sessions.open(new)
    assert (old.num_cancels, new.num_cancels) == (1, 0)
    assert sessions.of(old) is None
    assert sessions.of(new) is not None
    sessions.close(old)  # late, and without effect on its successor
    assert sessions.num_legs == 1


@pytest.mark.parametrize("attempt", [0, 1])
async def test_a_stale_attempt_is_refused(sessions: Sessions, attempt: int) -> None:
    sessions.open(FakeLeg(1, attempt=1))
    with pytest.raises(Cancelled):
        sessions.open(FakeLeg(1, attempt=attempt))


async def test_cancel_is_idempotent_and_takes_older_attempts_only(sessions: Sessions) -> None:
    leg = FakeLeg(1, attempt=2)
    sessions.open(leg)
    sessions.session("router").cancel(1, 1)
    assert leg.num_cancels == 0
    sessions.session("router").cancel(1, 2)
    sessions.session("router").cancel(1, 2)
    assert leg.num_cancels == 1
    assert sessions.num_legs == 0
    sessions.session("router").cancel(99, 0)
    sessions.session("unheard of").cancel(1, 0)


async def test_a_cancel_that_arrives_before_its_start_is_remembered(sessions: Sessions) -> None:
    sessions.session("router").cancel(1, 1)
    sessions.session("router").cancel(1, 0)  # a late, older one takes nothing back
    with pytest.raises(Cancelled):
        sessions.open(FakeLeg(1, attempt=1))
    sessions.open(FakeLeg(1, attempt=2))
    sessions.open(FakeLeg(1, attempt=0, router_id="another"))  # keys are a router's own
    assert sessions.num_legs == 2


async def test_top_logprobs_count_towards_the_size_of_the_outbox(sessions: Sessions) -> None:
    session, _ = sessions.attach("router")
    many = types_pb2.TokenLogprobs(top_token_ids=range(20), top_logprobs=[0.0] * 20)
    for _ in range(MAX_OUTBOX_ROWS // 20):
        session.add_logprobs(many)
    assert session.overflowed


WORDS = {
    "tokens": lambda session: session.add_tokens([1], [0], [0], [5]),
    "logprobs": lambda session: session.add_logprobs(types_pb2.TokenLogprobs()),
    "started": lambda session: session.add_started(types_pb2.Started()),
    "finished": lambda session: session.add_finished(types_pb2.Finished()),
    "granted": lambda session: session.add_granted(FakeLeg(1).generation, None),
    "first_tokens": lambda session: session.add_first_token(types_pb2.FirstToken()),
    "transferred": lambda session: session.add_transferred(node_pb2.Transferred()),
    "failed": lambda session: session.add_failed(1, 0, Overloaded("full")),
}


@pytest.mark.parametrize("word", WORDS)
async def test_every_kind_of_message_is_sent(sessions: Sessions, word: str) -> None:
    """Messages are sent at once, except those of a step, which ends with a flush."""
    session, _ = sessions.attach("router")
    session.take()
    WORDS[word](session)
    assert not session.is_empty
    assert session.wake.is_set() == (word not in ("tokens", "logprobs", "started"))
    sessions.flush()
    assert session.wake.is_set()


async def test_finish_is_sent_once_and_closes_the_leg(sessions: Sessions) -> None:
    leg = FakeLeg(1, attempt=4)
    session, _ = sessions.attach("router")
    sessions.open(leg)
    for _ in range(2):
        sessions.finish(leg, 9, FinishReason.ERROR, "transfer_failed", "lost")
    (finished,) = session.take().finished
    assert (finished.key, finished.attempt, finished.num_output_tokens) == (1, 4, 9)
    assert (finished.reason, finished.error_code) == (types_pb2.FINISH_REASON_ERROR, "transfer_failed")
    assert sessions.num_legs == 0


async def test_a_repeated_start_does_not_reopen_its_leg(sessions: Sessions) -> None:
    leg = FakeLeg(5, attempt=1)
    sessions.open(leg)
    sessions.close(leg)
    with pytest.raises(Cancelled):
        sessions.open(FakeLeg(5, attempt=1))
    sessions.open(FakeLeg(5, attempt=2))
    assert sessions.num_legs == 1


async def test_grants_and_failures_are_separate_messages(sessions: Sessions) -> None:
    session, _ = sessions.attach("router")
    granted, failed = FakeLeg(1, attempt=1), FakeLeg(2)
    for leg in (granted, failed):
        sessions.open(leg)
    session.take()
    sessions.grant(granted, transfer_pb2.Grant(grant_id=9))
    sessions.fail(failed, InvalidRequest("too odd", param="top_k"))
    sessions.fail(failed, InvalidRequest("once is enough"))
    sessions.refuse(FakeLeg(3).generation, Overloaded("full"))
    assert session.wake.is_set()
    batch = session.take()
    assert [(word.key, word.attempt, word.grant.grant_id) for word in batch.granted] == [(1, 1, 9)]
    said = [(word.key, word.code, word.message, word.param) for word in batch.failed]
    assert said == [(2, "invalid_value", "too odd", "top_k"), (3, "overloaded", "full", "")]
    assert sessions.num_legs == 1


async def test_a_leg_is_found_by_its_key_and_attempt(sessions: Sessions) -> None:
    session, _ = sessions.attach("router")
    leg = FakeLeg(1, attempt=2)
    sessions.open(leg)
    assert [session.leg(1, attempt) for attempt in (1, 2, 3)] == [None, leg, None]
    assert session.leg(2, 2) is None


async def test_only_the_latest_cancelled_requests_are_remembered(
    sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("baton.node.session._MAX_TOMBSTONES", 2)
    for key in (1, 2, 1, 3):
        sessions.session("router").cancel(key, 0)
    for key in (1, 3):
        with pytest.raises(Cancelled):
            sessions.open(FakeLeg(key))
    sessions.open(FakeLeg(2))
