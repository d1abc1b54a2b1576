"""A fleet of real services in one event loop: what surrounds them (gRPC, sockets, Redis, threads, clocks) is simulated.

Nodes run `decode_node.node.serve` and `prefill_node.node.serve` as a process would; routers run the `Dispatcher`.
"""

import asyncio
import random
from typing import Any

import decode_node.node
import prefill_node.node
from baton.process.lifecycle import Shutdown
from baton.process.settings import NodeConfig
from router.placing.admission import Limits
from router.serving.dispatch import Dispatcher
from tests.simulation import threads
from tests.simulation.loop import Process, SimLoop, Violation
from tests.simulation.model import make_engine, random_work
from tests.simulation.network import Network
from tests.simulation.redis_stub import RedisServer

_FIRST_PORT = 5000
REDIS_URL = "redis://redis:6379/0"
_SERVE = {"prefill": prefill_node.node.serve, "decode": decode_node.node.serve}


class Fleet:
    """The living processes by name; a restarted one is another `Process` of the same name."""

    def __init__(self, loop: SimLoop, network: Network, rng: random.Random, num_blocks: int) -> None:
        self.loop, self.network = loop, network
        self.processes: dict[str, Process] = {}
        self.roles: dict[str, str] = {}
        self.problems: list[str] = []
        self.clock_errors: dict[str, float] = {}  # in seconds, of hosts, from the next start of the process on
        self._rng = rng
        self._num_blocks = num_blocks
        redis = Process("redis")
        self.processes["redis"] = redis
        self.redis = RedisServer(network, redis)

    def names(self, *roles: str) -> list[str]:
        """Of the services with one of these roles."""
        return [name for name, role in self.roles.items() if role in roles]

    def start_node(self, role: str, name: str) -> Process:
        """A node with an empty pool."""
        process = self._new_process(role, name)
        process.context.run(self._serve, process, role)
        return process

    def start_router(self, name: str) -> Process:
        """A router; its dispatcher is `parts["dispatcher"]` at once."""
        process = self._new_process("router", name)
        process.context.run(self._route, process)
        return process

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.network.kill(self.processes[name])

    def restart(self, name: str) -> Process:
        """After a kill."""
        role = self.roles[name]
        return self.start_router(name) if role == "router" else self.start_node(role, name)

    def freeze(self, name: str) -> None:
        """SIGSTOP."""
        self.processes[name].frozen = True

    def thaw(self, name: str) -> None:
        """SIGCONT."""
        self.processes[name].frozen = False

    def drain(self, name: str) -> "asyncio.Task[None]":
        """SIGTERM; the task ends when the process has."""
        process = self.processes[name]
        process.context.run(process.parts["shutdown"].request)
        return process.parts["task"]

    def _new_process(self, role: str, name: str) -> Process:
        process = self.processes[name] = Process(name)
        process.clock_error_s = self.clock_errors.get(name, 0.0)
        self.roles[name] = role
        self.loop.add_strands(process)
        return process

    def _serve(self, process: Process, role: str) -> None:
        work = random_work(self._rng, threads.sleep)
        engine = process.parts["engine"] = make_engine(self._num_blocks, work, self.loop.time)
        process.parts["shutdown"] = shutdown = Shutdown()
        config = NodeConfig(
            model="stub", node_id=process.name, transport="tcp", redis_url=REDIS_URL, drain_timeout_s=10.0,
            port=_FIRST_PORT + list(self.roles).index(process.name),  # the same after a restart
        )  # fmt: skip
        task = process.parts["task"] = asyncio.get_running_loop().create_task(_SERVE[role](config, engine, shutdown))
        task.add_done_callback(lambda task: self._ended(process, task))

    def _route(self, process: Process) -> None:
        dispatcher = process.parts["dispatcher"] = Dispatcher(
            REDIS_URL,
            endpoint=f"{process.name}:8000",
            router_id=f"{process.name}-{self.loop.time():.3f}",
            limits=Limits(max_full_wait_s=20.0),
        )
        task = process.parts["task"] = asyncio.get_running_loop().create_task(dispatcher.start())
        task.add_done_callback(lambda task: task.exception() and self._ended(process, task))

    def _ended(self, process: Process, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()):
            self.problems.append(f"{process} ended: {error!r}")
        self.network.kill(process)

    # what has to hold

    def check_problems(self) -> None:
        """Raise Violation where a process has noticed something that must not be."""
        if self.problems:
            raise Violation(self.problems[0])

    def leaks(self) -> list[str]:
        """What is still held by somebody, though no request is left."""
        found = []
        for name in self.names("prefill", "decode"):
            parts = self.processes[name].parts
            if "service" not in parts:
                found.append(f"{name}: not started")
                continue
            engine = parts["engine"]
            num_held = engine.num_blocks - engine.blocks.num_free_blocks
            counts = {
                "blocks held": num_held,
                "requests in the engine": len(list(engine._scheduler.requests())),
                "legs": parts["sessions"].num_legs,
                "owners": len(parts["service"].outputs._owners),
                "walks": len(parts["service"]._legs),
                "queued reservations": parts["board"].num_queued,
            }
            if "receiver" in parts:
                counts["open grants"] = parts["receiver"].num_open_transfers
            found += [f"{name}: {count} {what}" for what, count in counts.items() if count]
        for name in self.names("router"):
            dispatcher = self.processes[name].parts["dispatcher"]
            num_legs = sum(len(link.legs) for link in dispatcher.links)
            counts = {"requests in flight": dispatcher.num_in_flight, "legs": num_legs}
            found += [f"{name}: {count} {what}" for what, count in counts.items() if count]
        return found
