"""A link within the UCX process: it is welcomed, heard, and gone once UCX no longer touches its messages."""

import pytest

from kv_transfer.ucx_child import frames
from tests.unit.kv_transfer.ucx_child.hand_turned import AREA_BYTES, SECRET, Child


@pytest.fixture
def child():
    return Child()


def test_a_link_is_reported_gone_once_after_its_last_request_has_ended(child):
    endpoint, message = child.connected(), child.waiting()
    sent = frames.Send(-1, 1, 5, 0, AREA_BYTES), frames.Receive(message, 1, AREA_BYTES, AREA_BYTES)
    assert child.turn(*sent, frames.Close(1), frames.Close(1)) == []
    assert (endpoint.is_closed, endpoint.on_close) == (True, None)
    child.end("tag_send", "canceled")
    assert child.turn() == [frames.Ended(-1, "canceled")]
    child.end("tag_recv_with_handle")
    assert child.turn() == [frames.Ended(message, ""), frames.Gone(1)]
    assert child.turn(frames.Close(1)) == [frames.Gone(1)]  # an order that has crossed the report


def test_a_link_whose_peer_is_gone_is_closed(child):
    endpoint = child.connected()
    endpoint.on_close()
    assert child.turn() == [frames.Gone(1, "the other end is gone")]


def test_heartbeats_are_received_from_admission_until_the_link_breaks(child):
    child.accepted()
    child.end("stream_recv", said=SECRET)
    assert child.turn() == [frames.Hello(-1, SECRET)]
    assert child.pending == []
    assert child.turn(frames.Admit(-1)) == []
    for _ in range(2):
        child.end("stream_recv", said=b"\x02")
        assert child.turn(frames.Beat(-1)) == [frames.Heard(-1)]
    child.end("stream_recv", "reset " * 100)
    for _ in range(3):
        child.end("stream_send", "reset")
    assert child.turn() == [frames.Gone(-1, ("reset " * 100)[:255])]


@pytest.mark.parametrize(("error", "said", "reason"), [("reset", b"", "reset"), ("", b"\x00", "it was refused")])
def test_a_link_that_is_not_welcomed_is_closed(child, error, said, reason):
    child.turn(frames.Connect(1, "host", 7, SECRET))
    child.end("stream_send")
    child.end("stream_recv", error, said)
    assert child.turn() == [frames.Gone(1, reason)]
