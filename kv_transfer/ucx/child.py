"""The UCX process as the operating system has it: what it is started with, what it prints, and how it ended."""

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
_MAX_LOG_BYTES = 2**14  # of what it says in one go; the rest is dropped

_log = logging.getLogger(__name__)


class UcxChild:
    """Create it in the event loop, in a thread that lives as long: with its thread the kernel takes the child away.

    `socket` is this end of what the two talk over.
    """

    def __init__(self, env: Mapping[str, str], staging: Staging) -> None:
        """Raises OSError where it cannot be started: most likely for want of descriptors."""
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
        """Of the process."""
        return self._process.pid

    @property
    def is_unable(self) -> bool:
        """Whether it has ended by itself, as where UCX cannot be loaded; known after `wait`."""
        return (self._process.returncode or 0) > 0

    def end(self) -> str:
        """Kill it, whatever it is doing, and close the socket. The last line that it has printed."""
        self._log_output()
        self._loop.remove_reader(self._output)
        os.close(self._output)
        self.socket.close()
        self._process.kill()
        return self._last_words

    async def wait(self) -> str:
        """Returns when there is no such process any more: how it ended, where that was not by `end`."""
        code = await asyncio.to_thread(self._process.wait)
        if code < 0 and code != -signal.SIGKILL:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
        return f"exit code {code}" if code > 0 else ""

    def _log_output(self) -> None:
        """What it prints, UCX's own lines among it, into the node's log."""
        try:
            said = os.read(self._output, _MAX_LOG_BYTES)
        except BlockingIOError:
            return
        if not said:
            self._loop.remove_reader(self._output)
        for line in filter(str.strip, said.decode(errors="replace").splitlines()):
            _log.warning("UCX process %d: %s", self.pid, line)
            self._last_words = line[:MAX_TEXT_CHARS]
