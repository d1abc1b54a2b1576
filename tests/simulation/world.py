"""Puts the simulated surroundings in place of the real ones, for as long as a simulation runs.

What is random comes from the seed, what is time comes from the loop, and sets have the same order in each run.
"""

import asyncio
import contextlib
import gc
import io
import logging
import random
import secrets
import sys
import uuid
import warnings
import zlib
from collections import deque
from collections.abc import Iterator
from typing import Any
from unittest import mock

import baton.net.redis_client
import baton.net.rpc
import baton.node.shell
import decode_node.legs
import decode_node.node
import engine.step_loop
import kv_transfer.digest
import kv_transfer.outgoing
import kv_transfer.peer
import kv_transfer.receiver
import prefill_node.legs
import prefill_node.node
import router.placing.prefix_replica
from baton.node.load import CACHED_TOKENS, OUTPUT_TOKENS, PROMPT_TOKENS
from tests.simulation import threads
from tests.simulation.clocks import replace_clocks
from tests.simulation.fleet import Fleet
from tests.simulation.loop import SimLoop, current_process
from tests.simulation.network import Network
from tests.simulation.redis_stub import RedisClient
from tests.simulation.rpc_client import SimChannel
from tests.simulation.rpc_server import SimServer
from tests.simulation.transport import SimTransport

_ROOMS = ("baton", "decode_node", "engine", "kv_transfer", "prefill_node", "router")
_HASHED = (decode_node.legs.DecodeLeg, prefill_node.legs.PrefillLeg, kv_transfer.outgoing.OutgoingTransfer,
           kv_transfer.peer.DecodePeer, router.placing.prefix_replica._Holder)  # fmt: skip
_RECORDED = {
    (decode_node.node, "DecodeService"): "service",
    (decode_node.node, "KVReceiver"): "receiver",
    (prefill_node.node, "PrefillService"): "service",
    (baton.node.shell, "LoadBoard"): "board",
    (baton.node.shell, "Sessions"): "sessions",
}
_EXPECTED_ERRORS = ("another process with a later epoch",)


class World:
    """One simulation. Everything in it follows from the seed."""

    def __init__(self, seed: int, num_blocks: int) -> None:
        self.seed = seed
        self.rng = random.Random(f"baton {seed}")
        self.loop = SimLoop(random.Random(f"order {seed}"))
        self.network = Network(self.loop, random.Random(f"network {seed}"), self.trace)
        self.fleet = Fleet(self.loop, self.network, random.Random(f"work {seed}"), num_blocks)
        self.hash = 0
        self.is_over = False
        self.events: deque[tuple[float, tuple[Any, ...]]] = deque(maxlen=20_000)

    def trace(self, *event: Any) -> None:
        """Something has happened that another run of the seed must do as well."""
        if self.is_over:
            return
        at = round(self.loop.time(), 9)
        self.events.append((at, event))
        self.hash = zlib.crc32(repr((at, event)).encode(), self.hash)


@contextlib.contextmanager
def simulated(world: World) -> Iterator[None]:
    """Within it, the rooms' code sees the world instead of the machine."""
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        stack.callback(random.setstate, random.getstate())
        random.seed(world.seed)
        _put_in_place(world, stack)
        replace_clocks(world.loop.time, _ROOMS, stack)
        enter(_logs_watched(world))
        enter(contextlib.redirect_stdout(io.StringIO()))
        enter(warnings.catch_warnings())
        gc.disable()
        try:
            yield
        finally:
            world.is_over = True
            _destroy(world.loop)
            gc.enable()


def _put_in_place(world: World, stack: contextlib.ExitStack) -> None:
    network, loop = world.network, world.loop

    def put(target: Any, name: str, value: Any) -> None:
        stack.enter_context(mock.patch.object(target, name, value))

    put(baton.net.rpc, "channel", lambda address, tls=None: SimChannel(network, address))
    put(baton.net.rpc, "server", lambda token="": SimServer(network))
    put(baton.net.redis_client, "connect", lambda url, timeout_s=0.05: RedisClient(world.fleet.redis, timeout_s))
    for module in [module for name, module in sys.modules.items() if name.startswith("kv_transfer.")]:
        if hasattr(module, "make"):
            put(module, "make", lambda name, host, device: SimTransport(network))
    put(kv_transfer.digest, "_INLINE_BYTES", 64)
    put(kv_transfer.receiver, "MAX_MESSAGE_BYTES", 100)  # short ones, so there are many
    for count in (PROMPT_TOKENS, CACHED_TOKENS, OUTPUT_TOKENS):  # of the process: an earlier run has left its mark
        put(count, "value", 0)
    put(engine.step_loop, "threading", threads.SimThreading)
    put(baton.node.shell, "MetricsServer", NoMetrics)
    put(baton.node.shell.reflection, "enable_server_reflection", lambda *args: None)
    put(uuid, "uuid4", lambda: uuid.UUID(int=world.rng.getrandbits(128)))
    put(secrets, "token_bytes", lambda size: world.rng.randbytes(size))
    put(secrets, "randbits", lambda bits: world.rng.getrandbits(bits))
    put(loop, "run_in_executor", lambda executor, function, *args: threads.run_in_executor(
        loop, world.rng.random() * 0.01, lambda: function(*args)))  # fmt: skip
    for kind in _HASHED:
        put(kind, "__hash__", _hash_by_birth(world))
    for (module, name), part in _RECORDED.items():
        put(module, name, _recorded(getattr(module, name), part))


def _recorded(kind: type, part: str) -> type:
    """The class, whose instances their process remembers."""

    class Recorded(kind):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            current_process().parts[part] = self

    return Recorded


def _hash_by_birth(world: World) -> Any:
    def hash_of(self: Any) -> int:
        if "_sim_hash" not in self.__dict__:
            self.__dict__["_sim_hash"] = world.loop._next_birth()
        return self._sim_hash

    return hash_of


class NoMetrics:
    """Stands in for the HTTP server of metrics."""

    def __init__(self, *args: Any) -> None:
        pass

    async def start(self) -> str:
        return ""

    async def stop(self) -> None:
        pass


@contextlib.contextmanager
def _logs_watched(world: World) -> Iterator[None]:
    """An error that is logged is a problem, and warnings are part of the trace."""

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name.partition(".")[0] not in (*_ROOMS, "asyncio"):
                return
            message = record.getMessage()
            world.trace("log", current_process().name, message)
            if record.levelno >= logging.ERROR and not message.startswith(_EXPECTED_ERRORS):
                detail = f": {record.exc_info[1]!r}" if record.exc_info else ""
                world.fleet.problems.append(f"{current_process()} logged: {message}{detail}")

    watch, root = Watch(), logging.getLogger()
    handlers, level = root.handlers, root.level
    root.handlers = [watch]
    root.setLevel(logging.WARNING)

    def on_exception(loop: Any, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception | None):
            world.fleet.problems.append(f"event loop: {context.get('message')}: {error!r}")

    world.loop.set_exception_handler(on_exception)
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(level)


def _destroy(loop: SimLoop) -> None:
    """End threads, and close every coroutine, without anything coming of it."""
    loop.end()
    warnings.simplefilter("ignore")
    for thread in threads.SimThread.all:
        thread.end()
    threads.SimThread.all.clear()
    for task in loop.tasks:
        task._log_destroy_pending = False
        if task.done():
            if not task.cancelled():
                task.exception()
            continue
        for _ in range(20):  # a coroutine that awaits while it is closed goes on
            try:
                task.get_coro().close()
                break
            except BaseException:
                continue
    loop.tasks.clear()
    loop._scheduled.clear()


def run(world: World, coroutine: Any) -> Any:
    """Run it as the world's main task, and return what it returns."""
    loop = world.loop
    for process in world.fleet.processes.values():
        loop.add_strands(process)
    task = world.loop.world.context.run(loop.create_task, coroutine)
    asyncio.set_event_loop(None)
    return loop.run_until_complete(task)
