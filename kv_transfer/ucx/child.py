"""The UCX process as an operating-system process: starts it, logs what it prints, and reports how it ended."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from subprocess import DEVNULL, Popen

from kv_transfer.staging import Staging
from kv_transfer.ucx_child import frames
from kv_transfer.ucx_child.frame_socket import MAX_TEXT_CHARS, FrameSocket

COMMAND = (sys.executable, "-P", "-m", "kv_transfer.ucx_child")
_MAX_LOG_BYTES = 2**14  # of its output, per read
_POLL_S = 0.01

_log = logging.getLogger(__name__)


class UcxChild:
    """A running UCX process, and the node's end of the `socket` to it.

    Create it in the event loop, in a thread that lives at least as long: the kernel kills the child when the thread
    that started it ends (PR_SET_PDEATHSIG).
    """

    def __init__(self, env: Mapping[str, str], staging: Staging) -> None:
        """Raises OSError if it cannot be started, most likely because descriptors have run out."""
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as failing, its:
            failing.callback(mine.close)
            self._output, its_output = os.pipe()
            failing.callback(os.close, self._output)
            descriptors = (its.fileno(), staging.descriptor)
            try:
                self._process = Popen(
                    [*COMMAND, *(str(value) for value in (*descriptors, staging.num_bytes))],
                    stdin=DEVNULL, stdout=its_output, stderr=its_output, pass_fds=descriptors, env=env,
                )  # fmt: skip
            finally:
                os.close(its_output)
            failing.pop_all()
        os.set_blocking(self._output, False)
        self.socket: FrameSocket[frames.Report] = FrameSocket(mine, frames.Report)
        self._last_words = ""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._output, self._log_output)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def is_unable(self) -> bool:
        """Whether it exited with an error by itself, as it does when UCX cannot be loaded. Known after `wait`."""
        return (self._process.returncode or 0) > 0

    def end(self) -> str:
        """Kill the process, whatever it is doing, and close the socket. Returns the last line that it printed."""
        self._log_output()
        self._loop.remove_reader(self._output)
        os.close(self._output)
        self.socket.close()
        self._process.kill()
        return self._last_words

    async def wait(self) -> str:
        """Wait until the process has exited. Returns how: a signal's name or an exit code; empty if `end` killed it.

        It polls instead of waiting in a thread: at a thread limit there may be none.
        """
        while (code := self._process.poll()) is None:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(_POLL_S)
        if code < 0 and code != -signal.SIGKILL:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
        return f"exit code {code}" if code > 0 else ""

    def _log_output(self) -> None:
        """Copy what the process printed, UCX's own messages included, to the node's log."""
        try:
            said = os.read(self._output, _MAX_LOG_BYTES)
        except BlockingIOError:
            return
        if not said:
            self._loop.remove_reader(self._output)
        for line in filter(str.strip, said.decode(errors="replace").splitlines()):
            _log.warning("UCX process %d: %s", self.pid, line)
            self._last_words = line[:MAX_TEXT_CHARS]
