"""The node's end of the `jail` process: starts it in advance or on first use, and again if it dies."""

import contextlib
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO

import msgspec

from baton.errors import Overloaded
from baton.request import Grammar
from engine.grammar.jail import ANY_OBJECT, Verdict

_ANSWER_S = 2.0  # without a sign of life, which comes four times as often; streams may stall for 3 s
_START_S = 30.0  # for reading a large tokenizer
# The jail forks, so it must have a single thread. Each thread's arena would count against the forks' address space.
_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}


class GrammarCheck:
    """Asks the jail about one grammar at a time. Blocks, so it must not be used on the event loop."""

    def __init__(self, model_dir: str | Path, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        eos = ",".join(map(str, sorted(eos_token_ids)))
        self._command = [sys.executable, "-m", "engine.grammar.jail", str(model_dir), str(vocab_size), eos]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._timeout_s = _START_S
        self._is_closed = False

    def run(self, grammar: Grammar) -> Verdict:
        """Return the verdict, from a new process if the present one does not answer. Raises Overloaded if none does."""
        line = msgspec.json.encode(grammar) + b"\n"
        with self._lock:
            is_new = False
            while not (is_new or self._is_closed):
                is_new = self._process is None
                try:
                    answer = self._ask(self._process or self._start(), line)
                except OSError:  # it cannot be started, or has died
                    answer = b""
                if answer:
                    return msgspec.json.decode(answer, type=Verdict)
                self._stop()  # it has died, or was frozen together with this node
            raise Overloaded("the node cannot compile grammars at present")

    def warm(self) -> None:
        """Start the process and wait for its first answer, which takes seconds if the cores are busy."""
        with contextlib.suppress(Overloaded):  # a request for a grammar will raise it again
            self.run(ANY_OBJECT)

    def close(self) -> None:
        """Kill the process, which also ends a `run` that waits for it. Idempotent."""
        self._is_closed = True
        if (process := self._process) is not None:
            process.kill()
        with self._lock:
            self._stop()

    def _start(self) -> "subprocess.Popen[bytes]":
        self._timeout_s = _START_S
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | _ENVIRONMENT,
            bufsize=0,
            process_group=0,  # only the node handles Ctrl-C; for why it has no session of its own see docs/log.md
        )
        if self._process.stdin is not None:
            os.set_blocking(self._process.stdin.fileno(), False)
        return self._process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, process: "subprocess.Popen[bytes]", line: bytes) -> bytes:
        """Return the answer, a line; empty if none comes in time, or the jail does not read the question."""
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a process without pipes")
        deadline_s, answer = time.monotonic() + self._timeout_s, b""
        while line:
            if not _ready([], [process.stdin], deadline_s):
                return b""
            line = line[os.write(process.stdin.fileno(), line) :]
        while not answer.endswith(b"\n"):
            if not _ready([process.stdout], [], time.monotonic() + self._timeout_s):
                return b""
            chunk = os.read(process.stdout.fileno(), 1 << 16)
            if not chunk:
                return b""
            answer += chunk
        self._timeout_s = _ANSWER_S
        return answer


def _ready(reading: Sequence[IO[bytes]], writing: Sequence[IO[bytes]], deadline_s: float) -> bool:
    """Wait until one of these pipes can be used; False if none can before the deadline."""
    ready_to_read, ready_to_write, _ = select.select(reading, writing, [], max(0.0, deadline_s - time.monotonic()))
    return bool(ready_to_read or ready_to_write)
