"""The UCX process's main loop: executes the node's orders and reports what UCX does, until the node has gone."""

import itertools
import select
import time
from collections.abc import Callable
from typing import Any

from kv_transfer.ucx_child import frames
from kv_transfer.ucx_child.frame_socket import MAX_TEXT_CHARS, FrameSocket
from kv_transfer.ucx_child.link import Link
from kv_transfer.ucx_child.worker import Worker

ALIVE_S = 0.25  # interval of the child's heartbeats; UCX progresses at least as often
_MAX_UNADMITTED = 64  # connections that have not shown a secret yet
_MAX_WAITING = 256  # messages that the node has not decided about; more of them wait within UCX


class Server:
    """The main loop. One thread without an event loop: there are only two descriptors to wait for."""

    def __init__(self, worker: Worker, region: memoryview, node: FrameSocket[frames.Order]) -> None:
        self._worker = worker
        self._ucx = worker.binding.ucx
        self._any_tag = self._ucx.UCXXTag(0), self._ucx.UCXXTagMask(0)
        self._region = region
        self._node = node
        self._listener: Any = None
        self._links: dict[int, Link] = {}
        self._accepted: list[Any] = []  # endpoints
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Any] = {}  # messages reported as Waiting, by number
        self._next_tick_s = 0.0
        self._obeying: dict[type[frames.Frame], Callable[[Any], None]] = {
            frames.Listen: self._listen,
            frames.Connect: self._connect,
            frames.Admit: lambda order: self._with_link(order.link, Link.admit),
            frames.Beat: lambda order: self._with_link(order.link, Link.beat),
            frames.Close: self._close,
            frames.Send: self._send,
            frames.Receive: self._receive,
            frames.Drop: self._drop,
        }

    def run(self) -> None:
        """Serve until the node has closed its end of the socket, or has died."""
        poll = select.poll()
        poll.register(self._worker.fileno(), select.POLLIN)
        poll.register(self._node.fileno(), select.POLLIN)
        has_flushed = True
        try:
            while True:
                had_flushed, has_flushed = has_flushed, self._turn()
                if has_flushed is not had_flushed:
                    poll.modify(self._node.fileno(), select.POLLIN | (0 if has_flushed else select.POLLOUT))
                if self._worker.arm():
                    poll.poll(ALIVE_S * 1000)
        except ConnectionError:
            return

    def _turn(self) -> bool:
        """Execute orders, let UCX progress, send reports. Returns False if the socket to the node is full."""
        for order in self._node.take():
            self._obeying[type(order)](order)
        if (now_s := time.monotonic()) >= self._next_tick_s:
            self._next_tick_s = now_s + ALIVE_S
            self._tick()
        self._worker.progress()
        self._open_accepted()
        self._take_messages()
        for link in [link for link in self._links.values() if link.is_broken]:
            link.close("the other end is gone")
        return self._node.flush()

    def _tick(self) -> None:
        self._node.put(frames.Alive())
        self._worker.thoroughly()
        for link in [link for link in self._links.values() if link.number < 0 and link.is_late]:
            link.close("it showed no secret")

    def _listen(self, _: frames.Listen) -> None:
        self._listener = self._ucx.UCXListener.create(self._worker.ucx, 0, self._accepted.append, deliver_endpoint=True)
        self._node.put(frames.Listening(self._listener.port))

    def _connect(self, order: frames.Connect) -> None:
        try:
            endpoint = self._ucx.UCXEndpoint.create(self._worker.ucx, order.host, order.port, True)
        except (self._ucx.UCXError, RuntimeError) as error:  # RuntimeError: an invalid address
            self._node.put(frames.Gone(order.link, str(error)[:MAX_TEXT_CHARS]))
        else:
            self._new_link(order.link, endpoint).say_hello(order.secret)

    def _close(self, order: frames.Close) -> None:
        """Close a link. Always answered with Gone, even twice: the link may have gone before the order arrived."""
        if link := self._links.get(order.link):
            link.close()
        else:
            self._node.put(frames.Gone(order.link))

    def _open_accepted(self) -> None:
        while self._accepted:
            endpoint = self._accepted.pop()
            if sum(not link.is_admitted for link in self._links.values()) >= _MAX_UNADMITTED:
                endpoint.close_blocking()
            else:
                self._new_link(-next(self._numbers), endpoint).hear_hello()

    def _new_link(self, number: int, endpoint: Any) -> Link:
        link = Link(number, endpoint, self._worker, self._node.put, self._forget)
        self._links[number] = link
        return link

    def _forget(self, link: Link) -> None:
        del self._links[link.number]

    def _with_link(self, number: int, do: Callable[[Link], None]) -> None:
        if link := self._links.get(number):
            do(link)

    def _send(self, order: frames.Send) -> None:
        area = self._area(order.start, order.num_bytes)
        self._start(order.link, order.message, "tag_send", area, self._ucx.UCXXTag(order.tag))

    def _receive(self, order: frames.Receive) -> None:
        message, area = self._waiting.pop(order.message), self._area(order.start, order.num_bytes)
        if not self._start(order.link, order.message, "tag_recv_with_handle", area, message):
            self._discard(message)

    def _start(self, link: int, message: int, operation: str, area: memoryview, where: Any) -> bool:
        def ended(error: str) -> None:
            self._node.put(frames.Ended(message, error))

        if link in self._links:
            return self._links[link].start(operation, area, ended, where)
        ended("the connection is closed")
        return False

    def _drop(self, order: frames.Drop) -> None:
        self._discard(self._waiting.pop(order.message))

    def _discard(self, message: Any) -> None:
        """Receive a message into a buffer that is too small: UCX then drops it, without transferring its bytes.

        A message that is never received would stay in UCX for ever.
        """
        nothing = self._worker.binding.array(bytearray(1))
        self._worker.submit(self._worker.ucx.tag_recv_with_handle(nothing, message), lambda _: None, nothing)

    def _take_messages(self) -> None:
        while len(self._waiting) < _MAX_WAITING:
            message = self._worker.ucx.tag_probe(*self._any_tag, remove=True)
            if not message.matched:
                break
            number = next(self._numbers)
            self._waiting[number] = message
            self._node.put(frames.Waiting(number, message.sender_tag.value, message.length))

    def _area(self, start: int, num_bytes: int) -> memoryview:
        area = self._region[start : start + num_bytes]
        if area.nbytes != num_bytes:
            raise ValueError(f"no area [{start}, {start + num_bytes}) in a region of {self._region.nbytes} bytes")
        return area
