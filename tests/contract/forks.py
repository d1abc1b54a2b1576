"""Processes to be killed and frozen that begin in milliseconds: forks of one that has imported everything already.

What a process imports takes it seconds, torch above all. So `python a_file.py fork` waits, with its imports done, for
the ends of three pipes: input and output of a fork, and where its pid and exit code are to be told. A fork in between
waits for that code, so whoever is frozen or killed is a process like any other.
"""

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from typing import BinaryIO


class Forked:
    """A process with those methods of `subprocess.Popen` that tests need."""

    def __init__(self, file: str, *args: str) -> None:
        """Start a process like `python file *args`."""
        (its_input, to), (of, its_output), (about, its_status) = os.pipe(), os.pipe(), os.pipe()
        theirs = [its_input, its_output, its_status]
        socket.send_fds(_zygote(file), [json.dumps(args).encode()], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        self.stdin: BinaryIO = open(to, "wb")  # noqa: SIM115
        self.stdout: BinaryIO = open(of, "rb")  # noqa: SIM115
        self._status: BinaryIO = open(about, "rb", buffering=0)  # noqa: SIM115
        self._code: int | None = None
        self.pid = int(self._status.readline())

    def send_signal(self, number: int) -> None:
        """Send a signal. No effect if the process has ended."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the process."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout_s: float) -> int:
        """Wait, and return the exit code; -N if signal N has ended the process."""
        if self._code is None:
            if not select.select([self._status], [], [], timeout_s)[0]:
                raise TimeoutError(f"process {self.pid} has not ended")
            self._code = int(self._status.readline())
            self._status.close()
        return self._code


@functools.cache
def _zygote(file: str) -> socket.socket:
    """Start the process that forks. It ends, through the socket's end, when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    subprocess.Popen([sys.executable, file, "fork"], stdin=theirs)
    theirs.close()
    return ours


def wait_to_be_forked() -> list[str]:
    """Called in the process that forks; returns in each fork, with its arguments, its input and its output."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    asked = socket.socket(fileno=os.dup(0))
    while True:
        message, descriptors, _, _ = socket.recv_fds(asked, 1 << 16, 3)
        if not message:
            sys.exit()
        if os.fork() == 0:
            asked.close()
            _fork_and_tell(*descriptors)
            return list(json.loads(message))
        for descriptor in descriptors:
            os.close(descriptor)


def _fork_and_tell(stdin: int, stdout: int, status: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(stdin, 0)
    os.dup2(stdout, 1)
    os.close(stdin)
    os.close(stdout)
    if (pid := os.fork()) == 0:
        os.close(status)
        return
    for descriptor in (0, 1):  # else nobody would see the fork close them
        os.close(descriptor)
    os.write(status, b"%d\n" % pid)
    os.write(status, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os._exit(0)
