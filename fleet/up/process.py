"""One service as a child process: its own process group, a log file, and the lines by which it says how far it is.

A service says `progress 0.42` and, when it serves, `ready {json}` on its standard output; all else it says goes to
its log. What it leaves to others: whether to start it again.
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
_PROGRAM = re.compile(r"^baton(?: [a-z]+)?: (?:error: )?")  # how a service begins its last words


@dataclass(frozen=True)
class Command:
    """How to start a service."""

    id: str
    role: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)
    cores: frozenset[int] = frozenset()  # empty: all
    stdin: bytes = field(default=b"", repr=False)


class Process:
    """A started service. `ready` gets what it said when it was."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, log_start: int) -> None:
        self._process, self._log, self._log_start = process, log, log_start
        self.ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._reader: asyncio.Task[None]

    @classmethod
    async def spawn(cls, command: Command, log: Path, on_progress: Callable[[float], None]) -> "Process":
        """Start it; OSError where there is no such program."""
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        log_start = os.fstat(descriptor).st_size  # before it starts: its last words may be there at once
        try:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                env=command.env,
                stdin=PIPE if command.stdin else DEVNULL,
                stdout=PIPE,
                stderr=descriptor,
                process_group=0,  # Ctrl-C in the terminal is the supervisor's alone
                limit=_MAX_LINE_BYTES,
            )
        except OSError:
            os.close(descriptor)
            raise
        if command.cores:
            with contextlib.suppress(OSError):  # gone already, or cores that a container took away
                os.sched_setaffinity(process.pid, command.cores)
        if process.stdin is not None:
            process.stdin.write(command.stdin)
            process.stdin.close()
        started = cls(process, log, log_start)
        started._reader = asyncio.create_task(started._read(descriptor, on_progress))
        return started

    @property
    def pid(self) -> int:
        """Also the id of its process group."""
        return self._process.pid

    async def wait(self) -> int:
        """Its exit code; minus the signal where one killed it."""
        code = await self._process.wait()
        await asyncio.wait([self._reader], timeout=1.0)  # a grandchild may hold the pipe open
        return code

    def signal(self, number: int) -> None:
        """Signal its whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def failure(self, code: int) -> str:
        """Why it ended, in one line: the last thing it wrote to its log."""
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
    with contextlib.suppress(OSError):  # a full disk costs log lines, nothing else
        os.write(log, line)


async def _line(stream: asyncio.StreamReader) -> bytes:
    """The next line; empty at the end."""
    try:
        return await stream.readline()
    except ValueError:  # longer than the limit: dropped
        return b"\n"
