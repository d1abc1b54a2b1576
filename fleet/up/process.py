"""Runs one service as a child process, with its own process group and log file, and reads its progress reports.

A service prints `progress 0.42` and, when it serves, `ready {json}` on its standard output. All other output goes to
its log. Restarting it is up to `member`.
"""

import asyncio
import contextlib
import json
import os
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MAX_LINE_BYTES = 2**20
_LOG_TAIL_BYTES = 16 * 1024
_PROGRAM = re.compile(r"^baton(?: [a-z]+)?: (?:error: )?")  # prefix of a service's final error message


@dataclass(frozen=True)
class Command:
    """The command line, environment and cores of a service."""

    id: str
    role: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cores: frozenset[int] = frozenset()  # empty: all
    niceness: int = 0
    stdin: bytes = field(default=b"", repr=False)


class Process:
    """A started service. The future `ready` gets what it reported when it was ready."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, log_start: int) -> None:
        self._process, self._log, self._log_start = process, log, log_start
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._reader: asyncio.Task[None]

    @classmethod
    async def spawn(cls, command: Command, log: Path, on_progress: Callable[[float], None]) -> "Process":
        """Start the service. Raises OSError if there is no such program."""
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        log_start = os.fstat(descriptor).st_size  # before it starts, because it may fail and log at once
        try:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                env=command.env,
                stdin=PIPE if command.stdin else DEVNULL,
                stdout=PIPE,
                stderr=descriptor,
                process_group=0,  # so that Ctrl-C in the terminal reaches only the supervisor
                limit=_MAX_LINE_BYTES,
            )
        except OSError:
            os.close(descriptor)
            raise
        with contextlib.suppress(OSError):  # it has already ended, or a container no longer has these cores
            if command.cores:
                os.sched_setaffinity(process.pid, command.cores)
            if command.niceness:
                os.setpriority(os.PRIO_PROCESS, process.pid, command.niceness)
        if process.stdin is not None:
            process.stdin.write(command.stdin)
            process.stdin.close()
        started = cls(process, log, log_start)
        started._reader = asyncio.create_task(started._read(descriptor, on_progress))
        return started

    @property
    def pid(self) -> int:
        """Its pid, which is also the id of its process group."""
        return self._process.pid

    async def wait(self) -> int:
        """Wait for its end; return its exit code, or minus the signal that killed it."""
        code = await self._process.wait()
        await asyncio.wait([self._reader], timeout=1.0)  # a grandchild may hold the pipe open
        return code

    def signal(self, number: int) -> None:
        """Signal its whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def failure(self, code: int) -> str:
        """Return why it ended in one line: the last line of its log, or the signal that killed it."""
        with contextlib.suppress(ValueError):
            if code < 0 and -code != signal.SIGTERM:
                return f"killed by {signal.Signals(-code).name} (log: {self._log})"
        line = self._last_line()
        if code == 1 and line:
            return line
        return f"exit code {code}{': ' if line else ''}{line} (log: {self._log})"

    def _last_line(self) -> str:
        try:
            with self._log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start, end - _LOG_TAIL_BYTES))
                lines = file.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return _PROGRAM.sub("", last)

    async def _read(self, log: int, on_progress: Callable[[float], None]) -> None:
        stdout = self._process.stdout
        if stdout is None:
            return
        try:
            while line := await _line(stdout):
                if not self._understand(line, on_progress):
                    _append(log, line)
        finally:
            os.close(log)

    def _understand(self, line: bytes, on_progress: Callable[[float], None]) -> bool:
        word, _, rest = line.partition(b" ")
        try:
            if word == b"progress":
                on_progress(min(1.0, max(0.0, float(rest))))
                return True
            if word == b"ready" and not self.ready.done():
                facts = json.loads(rest)
                self.ready.set_result(facts if isinstance(facts, dict) else {})
                return True
        except ValueError:
            pass
        return False


def _append(log: int, line: bytes) -> None:
    with contextlib.suppress(OSError):  # a full disk must cost nothing but log lines
        os.write(log, line)


async def _line(stream: asyncio.StreamReader) -> bytes:
    """Read the next line; empty at the end of the stream."""
    try:
        return await stream.readline()
    except ValueError:  # the line exceeds the limit and is dropped
        return b"\n"
