"""Frames between a node and its UCX process: in order, without blocking, and only those that are defined."""

import socket

import msgspec
import pytest

from kv_transfer.ucx_child import frames
from kv_transfer.ucx_child.frame_socket import FrameSocket


@pytest.fixture
def ends():
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    node, child = FrameSocket(pair[0], frames.Report), FrameSocket(pair[1], frames.Order)
    yield node, child
    node.close()
    child.close()


def test_frames_arrive_as_they_were_sent(ends):
    node, child = ends
    sent = [frames.Connect(1, "h" * 255, 2**16 - 1, b"s" * 32), frames.Send(-1, 1, 2**64 - 1, 2**40, 2**30)]
    for frame in sent:
        node.put(frame)
    assert child.take() == []
    assert node.flush()
    assert child.take() == sent
    child.put(frames.Ended(-1, "e" * 255))
    assert child.flush()
    assert node.take() == [frames.Ended(-1, "e" * 255)]


def test_frames_are_kept_for_a_side_that_does_not_read_until_it_is_given_up(ends):
    node, child = ends
    for number in range(2**16):
        node.put(frames.Beat(number))
        if number % 1000 == 0:
            node.flush()
    assert not node.flush()
    for _ in range(2**16 - len(node._queue)):
        node.put(frames.Beat(0))
    with pytest.raises(ConnectionError, match="takes no frames"):
        node.put(frames.Beat(0))
    heard = []
    while len(heard) < 2**16:
        heard += child.take()
        node.flush()
    assert heard[: 2**16] == [frames.Beat(number) for number in range(2**16)]


def test_the_end_of_the_socket_and_malformed_frames_are_errors(ends):
    node, child = ends
    for packet in (b"\xc1", msgspec.msgpack.encode([["Alive"]]), msgspec.msgpack.encode([["Beat", "one"]])):
        node._sock.send(packet)
        with pytest.raises(ConnectionError, match="malformed packet"):
            child.take()
    node.close()
    with pytest.raises(ConnectionError, match="has ended"):
        child.take()
    child.put(frames.Alive())
    with pytest.raises(ConnectionError):
        child.flush()
