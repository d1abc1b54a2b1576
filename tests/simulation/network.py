"""The network: connections that keep the order of what they carry, and nothing else for certain.

A segment arrives late, later (lost and sent again), after the partition, or never, where its connection ends before. A
process that dies resets its connections, if the news gets through; one that freezes leaves them open. Each direction
between two processes can be blocked by itself, as a firewall does it: then segments wait for the other attempt.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.simulation.loop import Process, SimLoop

BASE_S = 0.0003
JITTER_S = 0.002
RESENT_S = (0.2, 0.8)
ORDER_S = 1e-7  # between segments of a connection, so that their order shows in their times

_FIN = ("fin",)
_RST = ("rst",)


class Refused(OSError):
    """Nobody listens there."""


class End:
    """One end of a connection. Callbacks run in the event loop of its process, in order; `on_end` once."""

    def __init__(self, network: "Network", process: Process) -> None:
        self.process = process
        self.other: End
        self.closed = False
        self.on_data: Callable[[Any], None] = lambda data: None
        self.on_end: Callable[[], None] = lambda: None
        self.num_unarrived = 0
        self.on_arrival: Callable[[], None] = lambda: None
        self._network = network
        self._held: deque[Any] = deque()  # by a partition, on the way to `other`
        self._last_arrival_s = 0.0

    def send(self, data: Any) -> None:
        """Without effect on a closed end."""
        if not self.closed:
            self.num_unarrived += 1
            self._transmit(data)

    def close(self) -> None:
        """The other end hears of it after all that was sent. Idempotent; `on_end` is not called here."""
        if not self.closed:
            self.closed = True
            self._transmit(_FIN)

    def reset(self) -> None:
        """From outside: the connection breaks on this side, as by a timeout of the kernel."""
        if not self.closed:
            self.close()
            self.process_soon(self.on_end)

    def died(self) -> None:
        """Its process has."""
        if not self.closed:
            self.closed = True
            self._transmit(_RST)

    def process_soon(self, callback: Callable[..., None], *args: Any) -> None:
        """In its process."""
        self._network.loop.call_soon(callback, *args, context=self.process.context)

    def release(self) -> None:
        """The direction is open again."""
        held, self._held = self._held, deque()
        for data in held:
            self._transmit(data)

    def _transmit(self, data: Any) -> None:
        network = self._network
        delay_s = network.latency_s(self.process, self.other.process) + network.waits_s(self.process, data)
        self._last_arrival_s = max(self._last_arrival_s + ORDER_S, network.loop.time() + delay_s)
        network.loop.call_at(self._last_arrival_s, self._arrive, data, context=network.loop.world.context)

    def _arrive(self, data: Any) -> None:
        if self._held or self._network.is_blocked(self.process, self.other.process):
            self._held.append(data)
            return
        self._network.trace("arrives", self.process.name, self.other.process.name, data)
        if data is _FIN or data is _RST:
            self._network.forget(self)
        else:
            self.num_unarrived -= 1
            if self.process.alive:
                self.process_soon(self.on_arrival)
        if self.other.process.alive:
            self.other.process_soon(self.other._deliver, data)
        else:
            self.other._transmit(_RST)

    def _deliver(self, data: Any) -> None:
        if data is _RST or data is _FIN:
            if not self.closed:
                self.closed = True
                self._network.forget(self)
                self.on_end()
        elif self.closed:
            self._transmit(_RST)
        else:
            self.on_data(data)


class Network:
    """All connections, and what is wrong with them."""

    def __init__(self, loop: SimLoop, rng: random.Random, trace: Callable[..., None]) -> None:
        self.loop = loop
        self.rng = rng
        self.trace = trace
        self.lags: dict[tuple[str, str], float] = {}  # seconds more, from one process to another
        self.rates: dict[str, float] = {}  # bytes of KV a second that a process can send at most
        self.loss = 0.0  # share of segments that have to be sent again
        self.duplicates = 0.0  # share of calls and stream messages that come twice
        self.skips = 0.0  # share of stream messages that something on the way swallows
        self.corruption = 0.0  # share of pieces of KV messages in which a bit flips
        self._busy_until_s: dict[str, float] = {}
        self._blocked: dict[tuple[str, str], int] = {}
        self._ends: dict[End, None] = {}
        self._listening: dict[int, tuple[Process, Callable[[End], None]]] = {}
        self._next_port = 40_000

    def latency_s(self, source: Process, target: Process) -> float:
        """Of the next segment."""
        delay_s = BASE_S + self.rng.random() * JITTER_S + self.lags.get((source.name, target.name), 0.0)
        while self.rng.random() < self.loss:
            delay_s += self.rng.uniform(*RESENT_S)
        return delay_s

    def waits_s(self, source: Process, data: Any) -> float:
        """For what left before on a slow link, and for its own bytes to leave."""
        if source.name not in self.rates or not isinstance(data, tuple) or data[0] != "piece":
            return 0.0
        begins_s = max(self._busy_until_s.get(source.name, 0.0), self.loop.time())
        self._busy_until_s[source.name] = begins_s + len(data[2]) / self.rates[source.name]
        return self._busy_until_s[source.name] - self.loop.time()

    def happens(self, share: float) -> bool:
        """Whether a fault with that share happens now."""
        return share > 0 and self.rng.random() < share

    def listen(self, process: Process, accept: Callable[[End], None], port: int = 0) -> int:
        """The port, a free one for 0; `accept` is called in the process with the end of each new connection."""
        if not port:
            self._next_port += 1
            port = self._next_port
        self._listening[port] = process, accept
        return port

    def unlisten(self, port: int) -> None:
        """Refuse newcomers. Idempotent."""
        self._listening.pop(port, None)

    async def connect(self, process: Process, port: int) -> End:
        """Raises Refused; hangs where the way is blocked."""
        target, _ = self._listening.get(port, (None, None))
        await asyncio.sleep(self.latency_s(process, process))
        while target and (self.is_blocked(process, target) or self.is_blocked(target, process)):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        listening = self._listening.get(port)
        if listening is None or not listening[0].alive:
            raise Refused("connection refused")
        mine, theirs = End(self, process), End(self, listening[0])
        mine.other, theirs.other = theirs, mine
        self._ends[mine] = self._ends[theirs] = None
        theirs.process_soon(listening[1], theirs)
        return mine

    def is_blocked(self, source: Process, target: Process) -> bool:
        """Whether segments that way are dropped."""
        return (source.name, target.name) in self._blocked

    def block(self, source: str, target: str) -> None:
        """Drop segments that way; counted, so overlapping partitions end one by one."""
        self._blocked[source, target] = self._blocked.get((source, target), 0) + 1

    def unblock(self, source: str, target: str) -> None:
        """The other of `block`."""
        self._blocked[source, target] -= 1
        if not self._blocked[source, target]:
            del self._blocked[source, target]
            for end in list(self._ends):
                if (end.process.name, end.other.process.name) == (source, target):
                    end.release()

    def kill(self, process: Process) -> None:
        """The process ends without a word of its own."""
        process.alive = False
        for strand in process.strands:
            strand.queue.clear()
        for port, (owner, _) in list(self._listening.items()):
            if owner is process:
                del self._listening[port]
        for end in [end for end in self._ends if end.process is process]:
            end.died()

    def break_between(self, one: str, other: str) -> None:
        """Reset every connection between the two."""
        for end in list(self._ends):
            if {end.process.name, end.other.process.name} == {one, other}:
                end.reset()

    def forget(self, end: End) -> None:
        """Nothing more comes from it."""
        self._ends.pop(end, None)
