"""The main loop of the UCX process: messages, connections without a secret, and a full socket."""

from types import SimpleNamespace

import pytest

from kv_transfer.transport import CONNECT_TIMEOUT_S
from kv_transfer.ucx_child import frames, link, server
from tests.unit.kv_transfer.ucx_child.hand_turned import AREA_BYTES, SECRET, Child, UCXError


@pytest.fixture
def child():
    return Child()


@pytest.mark.parametrize("error", [UCXError("not connected"), RuntimeError("no handle")])
def test_a_message_whose_receive_fails_at_once_is_discarded(child, error):
    """Else it would stay in UCX for ever. Its link is broken."""
    endpoint, message = child.connected(), child.waiting()
    endpoint.error = error
    reports = child.turn(frames.Receive(message, 1, 0, AREA_BYTES))
    reason = f"the connection is closed: {error}"
    assert reports == [frames.Ended(message, reason), frames.Gone(1, "the other end is gone")]
    assert child.ucx.num_dropped == 1


def test_a_message_is_discarded_if_its_link_is_closing_or_gone_and_only_then(child):
    child.connected()
    messages = [child.waiting() for _ in range(4)]
    assert child.turn(frames.Receive(messages[0], 1, 0, AREA_BYTES)) == []
    assert child.ucx.num_dropped == 0
    late = frames.Receive(messages[1], 1, 0, AREA_BYTES), frames.Receive(messages[2], 9, 0, 1)
    assert child.turn(frames.Close(1), *late, frames.Drop(messages[3])) == [
        frames.Ended(message, "the connection is closed") for message in messages[1:3]
    ]
    assert child.ucx.num_dropped == 3


def test_messages_beyond_the_limit_of_questions_to_the_node_wait_within_ucx(child, monkeypatch):
    monkeypatch.setattr(server, "_MAX_WAITING", 3)
    child.ucx.arrived = 5
    waiting = child.turn()
    assert (len(waiting), child.ucx.arrived) == (3, 2)
    assert len(child.turn(frames.Drop(waiting[0].message), frames.Drop(waiting[1].message))) == 2


@pytest.mark.parametrize("refusal", [UCXError("no device " * 100), RuntimeError("no address " * 100)])
def test_an_address_that_ucx_refuses_is_a_link_that_is_gone(child, refusal):
    child.ucx.refusal = refusal
    assert child.turn(frames.Connect(1, "nowhere", 7, SECRET)) == [frames.Gone(1, str(refusal)[:255])]


def test_a_connection_without_a_secret_in_time_is_closed(child, monkeypatch):
    mute, broken, admitted = child.accepted(), child.accepted(), child.accepted()
    child.turn(frames.Admit(-3), frames.Connect(1, "host", 7, SECRET))
    child.pending[1][1]("reset")
    assert [end.is_closed for end in (mute, broken, admitted)] == [False, True, False]
    late_s = link.time.monotonic() + CONNECT_TIMEOUT_S + 0.1
    monkeypatch.setattr(link.time, "monotonic", lambda: late_s)
    child.turn()
    assert [end.is_closed for end in (mute, broken, admitted)] == [True, True, False]
    assert not child.ucx.endpoints[0].is_closed  # the node watches the links that it opens


def test_connections_without_a_secret_are_limited(child, monkeypatch):
    monkeypatch.setattr(server, "_MAX_UNADMITTED", 2)
    child.connected()  # has shown its secret
    ends = [child.accepted() for _ in range(3)]
    assert [end.is_closed for end in ends] == [False, False, True]
    child.turn(frames.Admit(-1))
    assert not child.accepted().is_closed


def test_it_waits_for_room_only_while_the_socket_is_full_and_ends_with_the_socket(child, monkeypatch):
    flushed, masks, poll = [False, False, True, True], [], SimpleNamespace()
    poll.register = poll.modify = lambda fd, mask: setattr(poll, fd, mask)
    poll.poll = lambda timeout_ms: masks.append(poll.node)
    monkeypatch.setattr(server.select, "poll", lambda: poll)
    child.arm = lambda: True
    child.fileno = iter(["worker", "node", "node", "node"]).__next__

    def flush():
        if not flushed:
            raise ConnectionError
        return flushed.pop(0)

    child.flush = flush
    child.server.run()
    both = server.select.POLLIN | server.select.POLLOUT
    assert masks == [both, both, server.select.POLLIN, server.select.POLLIN]


def test_an_area_beyond_the_region_ends_the_process(child):
    child.connected()
    with pytest.raises(ValueError, match="no area"):
        child.turn(frames.Send(-1, 1, 5, AREA_BYTES, AREA_BYTES + 1))
