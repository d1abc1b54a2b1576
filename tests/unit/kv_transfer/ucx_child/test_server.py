"""The main loop of the UCX process, over a UCX that fails when the test says so."""

from types import SimpleNamespace

import pytest

from kv_transfer.ucx_child import frames
from kv_transfer.ucx_child.server import Server

AREA_BYTES = 4096


class UCXError(Exception):
    """ucxx.libucxx.UCXError."""


class Endpoint:
    """An endpoint that receives nothing while it has an `error`."""

    def __init__(self):
        self.error = None

    def set_close_callback(self, callback):
        pass

    remove_close_callback = close_blocking = lambda self: None

    def stream_recv(self, array):
        return ("stream_recv", array)

    stream_send = stream_recv

    def tag_recv_with_handle(self, array, message):
        if self.error:
            raise self.error
        return (array, message)


class Worker:
    """A worker whose requests never end. A message must be received once: in an area, or in a buffer too small."""

    def __init__(self):
        self.endpoint, self.dropped, self.arrived = Endpoint(), [], []
        create = SimpleNamespace(create=lambda *_: self.endpoint)
        self.binding = SimpleNamespace(ucx=SimpleNamespace(
            UCXError=UCXError, UCXEndpoint=create, UCXXTag=lambda tag: tag, UCXXTagMask=lambda mask: mask,
        ), array=memoryview)  # fmt: skip
        self.ucx = self
        self.submitted = []

    def submit(self, request, on_end, keep):
        self.submitted.append(request)

    def progress(self):
        pass

    thoroughly = progress

    def tag_probe(self, tag, mask, remove):
        tag = self.arrived.pop(0) if self.arrived else None
        return SimpleNamespace(matched=tag is not None, sender_tag=SimpleNamespace(value=tag), length=AREA_BYTES)

    def tag_recv_with_handle(self, array, message):
        assert array.nbytes < message.length
        self.dropped.append(message)


class Node:
    """The node's end of the socket: `orders` are taken at the next turn, `reports` are what came."""

    def __init__(self):
        self.orders, self.reports = [], []
        self.put = self.reports.append

    def take(self):
        orders, self.orders = self.orders, []
        return orders

    def flush(self):
        return True


class Child:
    """A server, turned by hand."""

    def __init__(self):
        self.worker, self.node = Worker(), Node()
        self.server = Server(self.worker, memoryview(bytearray(2 * AREA_BYTES)), self.node)
        self.turn(frames.Connect(1, "host", 7, b"s" * 32))

    def turn(self, *orders):
        """Execute the orders; return what is reported."""
        self.node.orders += orders
        self.node.reports.clear()
        self.server._turn()
        return [report for report in self.node.reports if report != frames.Alive()]

    def waiting(self):
        """A message that has arrived."""
        self.worker.arrived.append(5)
        (waiting,) = self.turn()
        return waiting.message


@pytest.mark.parametrize("error", [UCXError("not connected"), RuntimeError("no handle")])
def test_a_message_whose_receive_fails_at_once_is_discarded(error):
    """Else it would stay in UCX for ever."""
    child = Child()
    message, child.worker.endpoint.error = child.waiting(), error
    reports = child.turn(frames.Receive(message, 1, 0, AREA_BYTES))
    assert reports == [frames.Ended(message, f"the connection is closed: {error}")]
    assert len(child.worker.dropped) == 1


def test_a_message_is_discarded_if_its_link_is_closed_or_gone_and_only_then():
    child = Child()
    messages = [child.waiting() for _ in range(3)]
    assert child.turn(frames.Receive(messages[0], 1, 0, AREA_BYTES)) == []
    assert child.worker.dropped == []
    closed = frames.Close(1), frames.Receive(messages[1], 1, 0, AREA_BYTES), frames.Receive(messages[2], 9, 0, 1)
    assert child.turn(*closed) == [frames.Ended(message, "the connection is closed") for message in messages[1:]]
    assert len(child.worker.dropped) == 2
