"""What goes wrong, and how it is mended. Each fault has its own task; `heal` mends all that is broken at once."""

import asyncio
import random
from collections.abc import Callable

from prefill_node.legs import PrefillLeg
from tests.simulation.fleet import Fleet
from tests.simulation.loop import Process
from tests.simulation.network import Network

LONGEST_S = 8.0
DAY_S = 86_400.0
ESTRANGED_S = 30.0
_LOOK_S = 0.001


class Faults:
    """Breaks a fleet; `kinds` are names of methods."""

    ALL = ("kill", "kill_router", "freeze", "partition", "one_way", "isolate", "hang_up", "lose", "repeat", "skip",
           "corrupt", "forget", "drain", "estrange", "lag", "slow", "starve", "set_clock")  # fmt: skip

    def __init__(self, fleet: Fleet, network: Network, rng: random.Random) -> None:
        self._fleet, self._network, self._rng = fleet, network, rng
        self._undo: dict[Callable[[], None], None] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.num_done = 0

    async def run(self, kinds: tuple[str, ...], every_s: float) -> None:
        """Break something now and then, until cancelled."""
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / every_s))
            self.strike(self._rng.choice(kinds))

    def strike(self, kind: str) -> None:
        """Break something of that kind."""
        self.num_done += 1
        getattr(self, kind)()

    def heal(self) -> None:
        """Mend everything."""
        for task in self._tasks:
            task.cancel()
        for undo in list(self._undo):
            self._mend(undo)

    def kill(self) -> None:
        self._kill(self._rng.choice(self._fleet.names("prefill", "decode")))

    def kill_router(self) -> None:
        self._kill(self._rng.choice(self._fleet.names("router")))

    def freeze(self) -> None:
        name = self._rng.choice([*self._fleet.names("prefill", "decode", "router"), "redis"])
        process = self._fleet.processes[name]
        if process.frozen or not process.alive:
            return
        process.frozen = True
        self._for_a_while(f"freeze {name}", lambda: setattr(process, "frozen", False))

    def freeze_placed(self) -> None:
        """A prefill node, at any time: to what is placed there from then on it has not said a word."""
        self._freeze(self._rng.choice(self._fleet.names("prefill")))

    def freeze_computing(self) -> None:
        """While it computes a prompt."""
        self._freeze_when(lambda leg: leg.request is not None and not leg.output.done())

    def freeze_shipping(self) -> None:
        """While messages of a transfer are under way."""
        self._freeze_when(lambda leg: leg.transfer is not None and bool(leg.transfer._loans))

    def freeze_committing(self) -> None:
        """When all is sent, and the decode node has not accepted it."""
        self._freeze_when(lambda leg: leg.transfer is not None and leg.output.done() and not leg.transfer._loans)

    def partition(self) -> None:
        one, other = self._rng.sample([*self._fleet.names("prefill", "decode", "router"), "redis"], 2)
        self._block(f"partition {one} {other}", [(one, other), (other, one)])

    def one_way(self) -> None:
        one, other = self._rng.sample([*self._fleet.names("prefill", "decode", "router"), "redis"], 2)
        self._block(f"one_way {one} {other}", [(one, other)])

    def isolate(self) -> None:
        name = self._rng.choice(self._fleet.names("prefill", "decode", "router"))
        others = [other for other in self._fleet.processes if other != name]
        self._block(f"isolate {name}", [pair for other in others for pair in ((name, other), (other, name))])

    def estrange(self) -> None:
        """A prefill and a decode node do not reach one another for long, while everybody else reaches both."""
        one, other = (self._rng.choice(self._fleet.names(role)) for role in ("prefill", "decode"))
        self._block(f"estrange {one} {other}", [(one, other), (other, one)], ESTRANGED_S)

    def lag(self) -> None:
        """What one process tells another comes late: after what it has told a third since, and who told that one."""
        pair = tuple(self._rng.sample(self._fleet.names("prefill", "decode", "router"), 2))
        self._network.lags[pair] = self._rng.uniform(0.05, 0.9)
        self._for_a_while(f"lag {pair}", lambda: self._network.lags.pop(pair, None))

    def slow(self) -> None:
        """What a prefill node ships moves, but takes seconds."""
        name = self._rng.choice(self._fleet.names("prefill"))
        self._network.rates[name] = self._rng.uniform(60, 600)
        self._for_a_while(f"slow {name}", lambda: self._network.rates.pop(name, None), LONGEST_S, LONGEST_S)

    def starve(self) -> None:
        """A node runs for moments, with gaps in between that others may take for silence."""
        process = self._fleet.processes[self._rng.choice(self._fleet.names("prefill", "decode"))]
        if process.frozen or not process.alive:
            return
        task = asyncio.get_running_loop().create_task(self._starve(process))
        self._tasks.append(task)
        self._for_a_while(f"starve {process}", lambda: (task.cancel(), setattr(process, "frozen", False)))

    def set_clock(self) -> None:
        """A node is killed, and its host's clock is wrong when it starts again."""
        name = self._rng.choice(self._fleet.names("prefill", "decode"))
        self._fleet.clock_errors[name] = self._rng.uniform(-DAY_S, DAY_S)
        self._kill(name)

    def hang_up(self) -> None:
        one, other = self._rng.sample(self._fleet.names("prefill", "decode", "router"), 2)
        self._network.trace("fault", f"hang_up {one} {other}")
        self._network.break_between(one, other)

    def lose(self) -> None:
        self._share("loss", self._rng.uniform(0.02, 0.3))

    def repeat(self) -> None:
        self._share("duplicates", self._rng.uniform(0.1, 0.5))

    def skip(self) -> None:
        self._share("skips", self._rng.uniform(0.003, 0.02))

    def corrupt(self) -> None:
        self._share("corruption", self._rng.uniform(0.002, 0.1))

    def forget(self) -> None:
        self._network.trace("fault", "redis forgets")
        self._fleet.redis.flush()

    def drain(self) -> None:
        name = self._rng.choice(self._fleet.names("prefill", "decode"))
        process = self._fleet.processes[name]
        if process.alive and "shutdown" in process.parts and not process.parts["shutdown"].requested:
            self._network.trace("fault", f"drain {name}")
            self._tasks.append(asyncio.get_running_loop().create_task(self._drain(name)))

    def _freeze_when(self, is_so: Callable[[PrefillLeg], bool]) -> None:
        """As soon as a prefill node has such a request, that node."""
        self._tasks.append(asyncio.get_running_loop().create_task(self._freeze_soon(is_so)))

    async def _freeze_soon(self, is_so: Callable[[PrefillLeg], bool]) -> None:
        nodes = {name: self._fleet.processes[name].parts["service"] for name in self._fleet.names("prefill")}
        while not (found := [name for name, service in nodes.items() if any(map(is_so, service._legs))]):  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        self._freeze(self._rng.choice(found))

    def _freeze(self, name: str) -> None:
        """For longer than anybody may wait for a first token."""
        process = self._fleet.processes[name]
        process.frozen = True
        self._for_a_while(f"freeze {name}", lambda: setattr(process, "frozen", False), LONGEST_S, LONGEST_S)

    async def _starve(self, process: Process) -> None:
        while True:
            process.frozen = not process.frozen
            await asyncio.sleep(self._rng.uniform(0.02, 0.7))

    async def _drain(self, name: str) -> None:
        process = self._fleet.processes[name]
        undo = self._restarts(name)
        self._undo[undo] = None
        await asyncio.wait([self._fleet.drain(name)], timeout=20)
        self._network.kill(process)
        self._mend(undo)

    def _kill(self, name: str) -> None:
        process = self._fleet.processes[name]
        if process.alive and "task" in process.parts and not self._is_draining(name):
            self._fleet.kill(name)
            self._for_a_while(f"kill {name}", self._restarts(name), 3.0)

    def _is_draining(self, name: str) -> bool:
        shutdown = self._fleet.processes[name].parts.get("shutdown")
        return shutdown is not None and shutdown.requested

    def _restarts(self, name: str) -> Callable[[], None]:
        process = self._fleet.processes[name]

        def restart() -> None:
            if self._fleet.processes[name] is process:
                self._network.kill(process)
                self._fleet.restart(name)

        return restart

    def _block(self, what: str, pairs: list[tuple[str, str]], longest_s: float = LONGEST_S) -> None:
        for pair in pairs:
            self._network.block(*pair)
        self._for_a_while(what, lambda: [self._network.unblock(*pair) for pair in pairs], longest_s)

    def _share(self, name: str, share: float) -> None:
        setattr(self._network, name, share)
        self._for_a_while(f"{name} {share:.3f}", lambda: setattr(self._network, name, 0.0))

    def _for_a_while(
        self, what: str, undo: Callable[[], object], longest_s: float = LONGEST_S, shortest_s: float = 0.3
    ) -> None:
        self._network.trace("fault", what)
        self._undo[undo] = None
        delay_s = self._rng.uniform(shortest_s, longest_s)
        asyncio.get_running_loop().call_later(delay_s, self._mend, undo)

    def _mend(self, undo: Callable[[], object]) -> None:
        if undo in self._undo:
            del self._undo[undo]
            self._network.trace("mended")
            undo()
