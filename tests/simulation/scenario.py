"""One run of one seed: a fleet under load, faults, healing, and then the question whether all is as promised."""

import asyncio
import contextlib
import dataclasses
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from tests.simulation.faults import Faults
from tests.simulation.loop import Violation
from tests.simulation.workload import Client, make_asks
from tests.simulation.world import World, run, simulated

ROUTERS = ("router-0", "router-1")
NODES = {"prefill-0": "prefill", "prefill-1": "prefill", "decode-0": "decode", "decode-1": "decode"}
READY_S = 10.0
POLL_S = 0.25
LONGEST_STALL_S = 3.0
FOUND_S = 8.0  # after which every router knows every node, the latest incarnation's lease and its polls included
SETTLED_S = 12.0  # after which nothing is held, once all requests are over and nothing is broken


@dataclass(frozen=True)
class Scenario:
    """How hard a fleet has it."""

    name: str
    kinds: tuple[str, ...] = ()
    every_s: float = 1.0  # a fault, on average
    once: bool = False  # one fault in all
    strict: bool = False  # no request may fail
    span_s: float = 12.0  # of load
    num_requests: int = 40
    cancelled: float = 0.15
    timeout_s: tuple[float, float] = (20.0, 60.0)
    num_blocks: int = 40
    longest_stall_s: float = math.inf  # of any request, the wait for its first token included


CALM = Scenario("calm", strict=True)
_FORGIVABLE = tuple(kind for kind in Faults.ALL if kind not in ("kill_router", "corrupt"))  # those end requests
SINGLE = Scenario("single", kinds=_FORGIVABLE, once=True, strict=True)
STORM = Scenario("storm", kinds=Faults.ALL)
_FREEZES = ("freeze_placed", "freeze_computing", "freeze_shipping", "freeze_committing")
FROZEN = Scenario(
    "frozen", kinds=_FREEZES, once=True, strict=True, cancelled=0.0, span_s=3.0, longest_stall_s=LONGEST_STALL_S
)
SLOW = dataclasses.replace(FROZEN, name="slow", kinds=("slow",), span_s=6.0)
SCENARIOS = {scenario.name: scenario for scenario in (CALM, SINGLE, STORM, FROZEN, SLOW)}


@dataclass
class Report:
    """Of a run that kept every promise."""

    seed: int
    hash: int
    virtual_s: float
    num_callbacks: int
    num_faults: int
    num_finished: int
    num_failed: int
    num_lost: int  # with their router
    longest_stall_s: float


def simulate(seed: int, scenario: Scenario, circumstance: AbstractContextManager[None] | None = None) -> Report:
    """Raises Violation, whose notes say how to see it again. `circumstance` lasts for as long as the fleet lives."""
    torch.set_num_threads(1)
    world = World(seed, scenario.num_blocks)
    asks = make_asks(world.rng, scenario.num_requests, scenario.span_s, list(ROUTERS), scenario.timeout_s,
                     scenario.cancelled)  # fmt: skip
    probes = make_asks(world.rng, 6, 1.0, list(ROUTERS), (30.0, 30.0), 0.0)
    with simulated(world), circumstance or contextlib.nullcontext():
        try:
            return run(world, _Run(world, scenario).run(asks, probes))
        except Violation as violation:
            violation.add_note(f"seed {seed}, scenario {scenario.name}, at {world.loop.time():.3f} s")
            violation.world = world
            raise


class _Run:
    def __init__(self, world: World, scenario: Scenario) -> None:
        self._world, self._fleet, self._loop = world, world.fleet, world.loop
        self._scenario = scenario
        self._faults = Faults(world.fleet, world.network, world.rng)
        self._clients: list[Client] = []

    async def run(self, asks: list, probes: list) -> Report:
        await self._start()
        started_s = self._loop.time()
        for ask in asks:
            self._loop.call_at(started_s + ask.at_s, self._begin, ask)
        await self._break(started_s + self._scenario.span_s)
        self._faults.heal()
        await self._until(self._all_over, self._scenario.timeout_s[1] + 5, "requests have not ended")
        if self._scenario.strict:
            self._check_none_failed(self._clients)
        self._check_stalls()
        await self._settle("after healing")
        await self._until(self._is_ready, FOUND_S, "a router has not found every node again")
        before = len(self._clients)
        for ask in probes:
            self._begin(ask)
        await self._until(self._all_over, 35, "requests after healing have not ended")
        self._check_none_failed(self._clients[before:])
        self._check_stalls()
        await self._settle("in the end")
        return self._report()

    async def _start(self) -> None:
        for name, role in NODES.items():
            self._fleet.start_node(role, name)
        for name in ROUTERS:
            self._fleet.start_router(name)
        await self._until(self._is_ready, READY_S, "the fleet is not ready")

    def _is_ready(self) -> bool:
        dispatchers = [self._fleet.processes[name].parts["dispatcher"] for name in ROUTERS]
        return all(sum(link.health == "ready" for link in d.links) == len(NODES) for d in dispatchers)

    def _begin(self, ask) -> None:
        process = self._fleet.processes[ask.router]
        if process.alive:
            client = Client(len(self._clients), ask, self._fleet)
            self._clients.append(client)
            self._loop.call_soon(client.begin, context=process.context)

    async def _break(self, until_s: float) -> None:
        scenario = self._scenario
        if scenario.once:
            await asyncio.sleep(self._world.rng.random() * scenario.span_s)
            self._faults.strike(self._world.rng.choice(scenario.kinds))
        elif scenario.kinds:
            breaking = self._loop.create_task(self._faults.run(scenario.kinds, scenario.every_s))
            self._loop.call_at(until_s, breaking.cancel)
        await self._until(lambda: self._loop.time() >= until_s + 15 * scenario.once, 1e9, "")

    async def _until(self, condition, timeout_s: float, otherwise: str) -> None:
        end_s = self._loop.time() + timeout_s
        while not condition():
            self._check()
            if self._loop.time() > end_s:
                raise Violation(otherwise)
            await asyncio.sleep(POLL_S)
        self._check()

    def _check(self) -> None:
        self._fleet.check_problems()
        for client in self._clients:
            if client.is_late and not client.is_over and not client.is_lost and not client.process.frozen:
                raise Violation(f"request {client.number} has not ended at its deadline")

    def _all_over(self) -> bool:
        return all(client.is_over or client.is_lost for client in self._clients)

    def _check_none_failed(self, clients: list[Client]) -> None:
        for client in clients:
            if client.error is not None and not client.is_lost:
                raise Violation(f"request {client.number} failed: {client.error!r}")

    def _check_stalls(self) -> None:
        for client in self._clients:
            if client.longest_stall_s > self._scenario.longest_stall_s:
                raise Violation(f"request {client.number} stood still for {client.longest_stall_s:.3f} s")

    async def _settle(self, when: str) -> None:
        end_s = self._loop.time() + SETTLED_S
        while leaks := self._fleet.leaks():
            self._check()
            if self._loop.time() > end_s:
                raise Violation(f"leaked, {when}: {'; '.join(leaks)}")
            await asyncio.sleep(POLL_S)

    def _report(self) -> Report:
        clients = self._clients
        return Report(
            self._world.seed, self._world.hash, self._loop.time() - 1000.0, self._loop.num_callbacks,
            self._faults.num_done,
            num_finished=sum(client.error is None and not client.is_lost for client in clients),
            num_failed=sum(client.error is not None for client in clients),
            num_lost=sum(client.is_lost for client in clients),
            longest_stall_s=max(client.longest_stall_s for client in clients),
        )  # fmt: skip
