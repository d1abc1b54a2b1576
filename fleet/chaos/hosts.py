"""A fleet whose nodes are in network namespaces on one bridge. It has no supervisor, which would assume one host.

The router and Redis are outside, at addresses of the bridge. A service that dies is not restarted.
"""

import json
import os
import secrets
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from baton.errors import BatonError
from fleet import http_ask
from fleet.chaos.fleet import PrivateFleet
from fleet.state import ProcessState
from fleet.up.embedded_redis import find_server
from fleet.up.services import PROGRAMS

BRIDGE_HOST, REDIS_HOST = "router", "redis"
_START_S = 120.0
_POLL_S = 0.05
_NODES = ("prefill-0", "prefill-1", "decode-0", "decode-1")


class NetworkFleet(PrivateFleet):
    """A fleet whose nodes (prefill-0 and so on) have a network namespace each. It has no endpoint before `start`."""

    nodes = _NODES

    def __init__(self, folder: Path, model: str) -> None:
        super().__init__("", Path(model).name, secrets.token_urlsafe(16))
        self._folder, self._model_dir = folder, model
        self._tag = f"bc{os.getpid() % 100000}"
        self._net = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._redis_port = 0
        self._password = secrets.token_urlsafe(16)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._services: list[ProcessState] = []

    @property
    def redis_url(self) -> str:
        """See `PrivateFleet`."""
        return f"redis://:{self._password}@{self._net}.253:{self._redis_port}"

    def services(self, role: str = "") -> list[ProcessState]:
        """See `PrivateFleet`."""
        return [service for service in self._services if role in ("", service.role)]

    def name(self, role: str, turn: int) -> str:
        """Return the name of a node of that role, alternating with `turn`."""
        return f"{role}-{turn % 2}"

    def host(self, of: str, turn: int) -> str:
        """Return the address of the router, of Redis, or of a node of that role."""
        fixed = {BRIDGE_HOST: 254, REDIS_HOST: 253}
        return f"{self._net}.{fixed[of] if of in fixed else 1 + self.nodes.index(self.name(of, turn))}"

    def within(self, node: str, *command: str) -> None:
        """Run a command in a node's namespace."""
        _run("ip", "netns", "exec", f"{self._tag}-{node}", *command)

    def build(self) -> None:
        """Create the bridge and the namespaces."""
        _run("ip", "link", "add", self._tag, "type", "bridge")
        for last in (254, 253):
            _run("ip", "addr", "add", f"{self._net}.{last}/24", "dev", self._tag)
        _run("ip", "link", "set", self._tag, "up")
        for at, node in enumerate(self.nodes):
            space, end = f"{self._tag}-{node}", f"{self._tag}v{at}"
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", end, "master", self._tag, "up")
            self.within(node, "ip", "addr", "add", f"{self._net}.{1 + at}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                self.within(node, "ip", "link", "set", device, "up")

    def start(self, *flags: str) -> None:
        """Start Redis, the nodes and the router; return when all are ready."""
        with socket.socket() as reserved:
            reserved.bind((f"{self._net}.253", 0))
            self._redis_port = reserved.getsockname()[1]
        config = f"bind {self._net}.253\nport {self._redis_port}\nrequirepass {self._password}\nsave ''\n"
        self._spawn("redis", (find_server(), "-"), stdin=config)
        for at, node in enumerate(self.nodes):
            role = node.partition("-")[0]
            within = ("ip", "netns", "exec", f"{self._tag}-{node}")
            own = ("--host", f"{self._net}.{1 + at}", "--node-id", node, "--num-threads", "1")
            self._spawn(node, (*within, *PROGRAMS[role], "--model", self._model_dir, *flags, *own))
        self._spawn("router", (*PROGRAMS["router"], "--model", self._model_dir, "--port", "0"))
        for service in self.services():
            if service.role != "redis":
                self._learn(service, self._ready(service.id))
        router = self.services("router")[0]
        self.endpoint = f"http://{router.address}"
        _until(lambda: _answers(self.endpoint), "the router did not become ready")

    def stop(self) -> None:
        """Stop and remove everything that was created."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        for node in self.nodes:
            subprocess.run(["ip", "netns", "del", f"{self._tag}-{node}"], check=False, capture_output=True, timeout=10)
        subprocess.run(["ip", "link", "del", self._tag], check=False, capture_output=True, timeout=10)

    def _spawn(self, name: str, command: tuple[str, ...], stdin: str = "") -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
        secret = {"BATON_REDIS_URL": self.redis_url, "BATON_SERVICE_TOKEN": self.token}
        env |= secret | {"BATON_DIE_WITH_PARENT": str(os.getpid())}
        with (self._folder / f"{name}.out").open("wb") as out, (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=out, stderr=log, process_group=0
            )  # fmt: skip
        self._processes.append(process)
        if process.stdin is not None:
            process.stdin.write(stdin.encode())
            process.stdin.close()
        self._services.append(ProcessState(name, name.partition("-")[0], process.pid, "ready"))

    def _ready(self, name: str) -> str:
        output = self._folder / f"{name}.out"
        _until(lambda: b"\nready {" in b"\n" + output.read_bytes(), f"{name} did not start: see its log")
        return next(line for line in output.read_text().splitlines() if line.startswith("ready "))

    def _learn(self, service: ProcessState, line: str) -> None:
        facts = json.loads(line.removeprefix("ready "))
        service.epoch, service.address = facts.get("epoch"), facts.get("address")
        service.metrics = facts.get("metrics") or facts.get("metrics_url")


@contextmanager
def started(folder: Path, model: str, *flags: str) -> Iterator[NetworkFleet]:
    """Start a router, and two prefill and two decode nodes in namespaces; remove all of it afterwards.

    `model` is a checkpoint; `flags` are passed to the nodes.
    """
    folder.mkdir(parents=True)
    fleet = NetworkFleet(folder, model)
    try:
        fleet.build()
        fleet.start(*flags)
        yield fleet
    finally:
        fleet.stop()


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise BatonError(f"{' '.join(command)}: {done.stderr.strip()}")


def _until(done: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + _START_S
    while not done():
        if time.monotonic() > until_s:
            raise BatonError(what)
        time.sleep(_POLL_S)


def _answers(endpoint: str) -> bool:
    try:
        return http_ask.get(endpoint, "/ready", "", timeout_s=1)[0] == 200
    except OSError:
        return False
