"""A seeded event loop with virtual time in which several processes live, each with its threads.

Callbacks of one thread of one process (a `Strand`) run in the order in which they were queued, as asyncio promises;
between strands the seed decides. A process that was killed runs no callback any more, one that is frozen runs them when
it thaws. To which strand a callback belongs its context says, so tasks inherit it, and the code under test knows
nothing of it. Time passes only when nobody has anything to do.
"""

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

MAX_CALLBACKS_AT_ONCE = 20_000  # without a microsecond between them: somebody spins


class Violation(Exception):
    """A promise was broken."""


class Strand:
    """A thread of a process, as the loop sees it."""

    def __init__(self, process: "Process") -> None:
        self.process = process
        self.queue: deque[asyncio.Handle] = deque()
        process.strands.append(self)


STRAND: contextvars.ContextVar[Strand] = contextvars.ContextVar("strand")


class Process:
    """What dies, freezes and is cut off as one. `context` is the one in which its callbacks run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self.clock_error_s = 0.0  # of the wall clock
        self.strands: list[Strand] = []
        self.main = Strand(self)
        self.parts: dict[str, Any] = {}  # objects of interest to whoever checks
        self.context = contextvars.copy_context()
        self.context.run(STRAND.set, self.main)

    def __repr__(self) -> str:
        return self.name


_NOBODY = Process("nobody")


def current_process() -> Process:
    """Whose code is running."""
    return STRAND.get(_NOBODY.main).process


class SimTask(asyncio.Task):
    """Hashed by birth, so that sets of tasks have the same order in each run of a seed."""

    _born = 0

    def __hash__(self) -> int:
        return self._born


class SimFuture(asyncio.Future):
    """Likewise."""

    _born = 0

    def __hash__(self) -> int:
        return self._born


class SimLoop(asyncio.BaseEventLoop):
    """Make one per run; `world` is the process of whoever simulates."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.world = Process("world")
        self.strands: list[Strand] = self.world.strands
        self.tasks: list[SimTask] = []  # all of them, so that none is collected while the simulation runs
        self.num_callbacks = 0
        self.on_resume: Callable[[], None] = lambda: None
        self._rng = rng
        self._now_s = 1000.0
        self._num_at_once = 0
        self._num_born = 0
        self._over = False
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        """Virtual seconds."""
        return self._now_s

    def create_future(self) -> "SimFuture":
        future = SimFuture(loop=self)
        future._born = self._next_birth()
        return future

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        """From any strand of a process into that of its event loop."""
        context = (context or contextvars.copy_context()).copy()
        context.run(STRAND.set, context.get(STRAND, self.world.main).process.main)
        return self.call_soon(callback, *args, context=context)

    def add_strands(self, process: Process) -> None:
        """Let a process run."""
        self.strands = [strand for strand in self.strands if strand.process.alive] + process.strands
        process.strands = _Joined(self, process.strands)

    def end(self) -> None:
        """Nothing is queued from now on: what is left may be destroyed."""
        self._over = True

    def _make_task(self, loop: Any, coroutine: Any, context: Any = None) -> SimTask:
        task = SimTask(coroutine, loop=loop, context=context)
        task._born = self._next_birth()
        self.tasks.append(task)
        return task

    def _next_birth(self) -> int:
        self._num_born += 1
        return self._num_born

    def _call_soon(self, callback: Any, args: Any, context: Any) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._enqueue(handle)
        return handle

    def _enqueue(self, handle: asyncio.Handle) -> None:
        strand = handle._context.get(STRAND, self.world.main)
        if strand.process.alive and not self._over:
            strand.queue.append(handle)

    def _run_once(self) -> None:
        while not self._stopping:
            busy = [strand for strand in self.strands if strand.queue and not strand.process.frozen]
            if not busy:
                self._pass_time()
                continue
            self._check_spinning()
            strand = busy[0] if len(busy) == 1 else busy[int(self._rng.random() * len(busy))]
            handle = strand.queue.popleft()
            if not handle._cancelled:
                self.num_callbacks += 1
                self._num_at_once += 1
                handle._run()

    def _pass_time(self) -> None:
        timers = self._scheduled
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)._scheduled = False
        if not timers:
            raise Violation("deadlock: nobody waits for anything that could still happen")
        self._now_s = max(self._now_s, timers[0]._when)
        while timers and timers[0]._when <= self._now_s:
            timer = heapq.heappop(timers)
            timer._scheduled = False
            if not timer._cancelled:
                self._enqueue(timer)
        self._num_at_once = 0

    def _check_spinning(self) -> None:
        if self._num_at_once > MAX_CALLBACKS_AT_ONCE:
            raise Violation("somebody spins: callbacks without end, and no time passes")

    def _write_to_self(self) -> None:
        """There is nobody to wake."""


class _Joined(list[Strand]):
    """A process's strands, when it runs: new ones run too."""

    def __init__(self, loop: SimLoop, strands: list[Strand]) -> None:
        super().__init__(strands)
        self._loop = loop

    def append(self, strand: Strand) -> None:
        super().append(strand)
        self._loop.strands.append(strand)
