"""One connection: a UCX endpoint, all of whose requests are tracked until they end, even after it was closed.

UCX may still write into a receive buffer after the receive was cancelled, and after the endpoint was closed. The
writing is over only when, after the close, the receive request itself has completed. Only then is a link gone.
"""

import time
from collections.abc import Callable
from typing import Any

from kv_transfer.transport import CONNECT_TIMEOUT_S, SECRET_BYTES
from kv_transfer.ucx_child.frame_socket import MAX_TEXT_CHARS
from kv_transfer.ucx_child.frames import Connected, Frame, Gone, Heard, Hello
from kv_transfer.ucx_child.worker import OnEnd, Worker

_WELCOME = b"\x01"
_BEAT = b"\x02"


class Link:
    """One connection. `report` sends a frame to the node; `forget` is called when the link is gone."""

    def __init__(
        self, number: int, endpoint: Any, worker: Worker, report: Callable[[Frame], None],
        forget: Callable[["Link"], None],
    ) -> None:  # fmt: skip
        self.number = number
        self.is_broken = False  # set when UCX reports an error; the server then closes the link
        self.is_admitted = False
        self.is_closed = False
        self._opened_s = time.monotonic()
        self._endpoint = endpoint
        self._worker = worker
        self._report = report
        self._forget = forget
        self._num_pending = 0
        endpoint.set_close_callback(self._note_broken)

    @property
    def is_late(self) -> bool:
        """Whether it was opened long ago and has not been admitted."""
        return not self.is_admitted and time.monotonic() - self._opened_s > CONNECT_TIMEOUT_S

    def start(self, operation: str, buffer: Any, on_end: OnEnd, *where: Any) -> bool:
        """Start `tag_send`, `tag_recv_with_handle`, `stream_send` or `stream_recv` with `buffer`.

        `on_end` is called once, when the buffer is no longer touched: with an error message, or "" for success.
        Returns False if nothing was started; `on_end` has then been called already.
        """
        if self.is_closed:
            on_end("the connection is closed")
            return False
        array = self._worker.binding.array(buffer)
        try:
            request = getattr(self._endpoint, operation)(array, *where)
        except (self._worker.binding.ucx.UCXError, RuntimeError) as error:  # the endpoint was closed meanwhile
            self.is_broken = True
            on_end(f"the connection is closed: {error}")
            return False
        self._num_pending += 1
        self._worker.submit(request, lambda error: self._ended(on_end, error), array)
        return True

    def say_hello(self, secret: bytes) -> None:
        """On the end that opened the link: send the secret, and wait for the welcome."""
        welcome = bytearray(len(_WELCOME))
        self.start("stream_recv", welcome, lambda error: self._welcomed(welcome, error))
        self.start("stream_send", secret, self._close_on_error)

    def hear_hello(self) -> None:
        """On the end that accepted the link: receive the secret, which must come first."""
        secret = bytearray(SECRET_BYTES)

        def heard(error: str) -> None:
            if error:
                self.close(error)
            else:
                self._report(Hello(self.number, bytes(secret)))

        self.start("stream_recv", secret, heard)

    def admit(self) -> None:
        """Welcome the other end, and receive its heartbeats from now on."""
        self.is_admitted = True
        self.start("stream_send", _WELCOME, self._close_on_error)
        self._hear_beat()

    def beat(self) -> None:
        """Send a heartbeat."""
        self.start("stream_send", _BEAT, self._close_on_error)

    def close(self, reason: str = "") -> None:
        """Close the link. Idempotent. Gone is reported when the last request has ended."""
        if self.is_closed:
            return
        self.is_closed = True
        self._reason = reason[:MAX_TEXT_CHARS]
        self._endpoint.remove_close_callback()
        self._endpoint.close_blocking()
        self._worker.thoroughly()
        self._endpoint = None  # it keeps the worker alive, and with it all of UCX's descriptors
        self._leave_when_quiet()

    def _welcomed(self, welcome: bytearray, error: str) -> None:
        if error or welcome != _WELCOME:
            return self.close(error or "it was refused")
        self.is_admitted = True
        return self._report(Connected(self.number))

    def _hear_beat(self) -> None:
        def heard(error: str) -> None:
            if error:
                return self.close(error)
            self._report(Heard(self.number))
            return self._hear_beat()

        self.start("stream_recv", bytearray(len(_BEAT)), heard)

    def _close_on_error(self, error: str) -> None:
        if error:
            self.close(error)

    def _ended(self, on_end: OnEnd, error: str) -> None:
        self._num_pending -= 1
        on_end(error)
        self._leave_when_quiet()

    def _leave_when_quiet(self) -> None:
        if self.is_closed and not self._num_pending:
            self._num_pending = -1  # so that this happens only once
            self._report(Gone(self.number, self._reason))
            self._forget(self)

    def _note_broken(self) -> None:
        """Called by UCX from within its progress, so it only sets flags."""
        self.is_broken = True
        self._worker.thoroughly()
