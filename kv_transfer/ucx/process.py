"""One UCX process (`kv_transfer.ucx_child`) as its node sees it, from start to end.

It counts as dead when its end of the socket closes, or when it has been silent for too long, as a frozen one is; it is
then killed, whatever it is doing. Its staging memory and all of its messages end with it.
"""

import asyncio
import itertools
from collections.abc import Callable, Mapping

from baton.errors import TransferError
from kv_transfer.staging import Area, Staging
from kv_transfer.stall import StallWatch
from kv_transfer.ucx.child import UcxChild
from kv_transfer.ucx_child import frames

_START_S = 30.0
_CLOSE_S = 5.0  # how long UCX may take to close a connection and release its memory
_MAX_PACKETS = 64  # read before other tasks get a turn
_PROMPT_BYTES = 2**18  # from this size on, flush at once: UCX starts on a message while the node copies the next
_ENDED = "the UCX process has ended"
OnEnd = Callable[[TransferError | None], None]  # called once, when UCX no longer touches the message's area


class UcxProcess:
    """One process. It must be created as its `UcxChild` must be."""

    def __init__(
        self, env: Mapping[str, str], on_report: Callable[[frames.Report], None], on_end: Callable[[], None]
    ) -> None:
        """`on_end` is called once when the process is dead, unless `close` ended it. OSError if it cannot start."""
        self.port = 0  # where it accepts connections; 0 while it does not
        self.reason = ""  # why it ended
        self.has_started = False
        self._on_report = on_report
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._messages: dict[int, OnEnd] = {}
        self._numbers = itertools.count(1)
        self._closing: dict[int, asyncio.TimerHandle] = {}
        self._flushing = False
        self.staging = Staging()
        try:
            self._child = UcxChild(env, self.staging)
        except OSError:
            self.staging.close()
            raise
        self._socket = self._child.socket
        self._watch = StallWatch("the UCX process is silent", lambda: self._end("it was silent"))
        self._start_timer = self._loop.call_later(_START_S, self._end, "it did not start")
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._child.pid

    @property
    def is_unable(self) -> bool:
        """See `UcxChild`."""
        return self._child.is_unable

    async def started(self) -> None:
        """Wait until the process has started. Raises TransferError if it has ended."""
        await asyncio.shield(self._started)
        if self.reason:
            raise TransferError(f"there is no UCX process: {self.reason}")

    def put(self, frame: frames.Frame) -> None:
        """Queue a frame for the process. No effect on a dead one; a process with a full queue is declared dead."""
        if self.reason:
            return
        try:
            self._socket.put(frame)
        except ConnectionError as error:
            self._end(str(error))
            return
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def start_send(self, link: int, tag: int, area: Area, on_end: OnEnd) -> None:
        """Send the area as one message."""
        number = -next(self._numbers)  # below 0: the child numbers the messages that it receives from 1 up
        self._start(frames.Send(number, link, tag, *area), on_end)

    def start_receive(self, message: int, link: int, area: Area, on_end: OnEnd) -> None:
        """Receive the waiting message into the area."""
        self._start(frames.Receive(message, link, *area), on_end)

    def close_link(self, link: int) -> None:
        """Close a connection. If UCX does not release its memory within _CLOSE_S, the process is killed."""
        if not self.reason and link not in self._closing:
            self.put(frames.Close(link))
            self._closing[link] = self._loop.call_later(_CLOSE_S, self._end, "it did not close a connection")

    async def close(self) -> None:
        """End the process, and wait until it has exited."""
        self._on_end = _nothing
        self._end("it was closed")
        await self.wait()

    async def wait(self) -> None:
        """Wait until a dead process has exited, and add to `reason` how it did."""
        if how := await self._child.wait():
            self.reason += f" ({how})"

    def _start(self, frame: frames.Send | frames.Receive, on_end: OnEnd) -> None:
        if self.reason:
            return on_end(TransferError(_ENDED))
        self._messages[frame.message] = on_end
        self.put(frame)
        if frame.num_bytes >= _PROMPT_BYTES:
            self._flush()
        return None

    def _flush(self) -> None:
        """Send what is queued; what the socket has no room for is sent when it becomes writable."""
        self._flushing = False
        if self.reason:
            return
        try:
            if self._socket.flush():
                self._loop.remove_writer(self._socket.fileno())
            else:
                self._loop.add_writer(self._socket.fileno(), self._flush)
        except OSError as error:
            self._end(f"its socket broke: {error}")

    def _on_readable(self) -> None:
        try:
            for _ in range(_MAX_PACKETS):
                reports = self._socket.take() if not self.reason else []
                for report in reports:
                    self._hear(report)
                if not reports:
                    break
        except ConnectionResetError:
            self._end("it died")
        except OSError as error:
            self._end(str(error))
        self._watch.moved()

    def _hear(self, report: frames.Report) -> None:
        match report:
            case frames.Ended(message, error):
                if on_end := self._messages.pop(message, None):
                    on_end(TransferError(f"UCX: {error}") if error else None)
                return
            case frames.Alive():
                if not self._started.done():
                    self._start_timer.cancel()
                    self._watch.started()
                    self.has_started = True
                    self._started.set_result(None)
            case frames.Listening(port):
                self.port = port
            case frames.Gone(link) if link in self._closing:
                self._closing.pop(link).cancel()
        self._on_report(report)

    def _end(self, reason: str) -> None:
        if self.reason:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        last_words = self._child.end()
        self.reason = f"{reason} ({last_words})" if last_words else reason
        self.port = 0
        self._watch.close()
        for timer in (self._start_timer, *self._closing.values()):
            timer.cancel()
        self.staging.close()
        messages, self._messages = self._messages, {}
        for on_end in messages.values():
            on_end(TransferError(_ENDED))
        if not self._started.done():
            self._started.set_result(None)
        self._on_end()


def _nothing() -> None:
    pass
