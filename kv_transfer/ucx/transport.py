"""The transport over UCX tag messages: RDMA where there is any, TCP elsewhere. UCX runs in a process of its own.

A crash, hang or memory corruption within UCX ends only that process and the transfers in flight; the node keeps running
and starts a new process. UCX reads and writes only staging memory; the node copies between that and its pool. A
message's tag and length are checked before it is received, and it is received only if the inbox has a slot for exactly
those.

A tag does not prove who sent a message, but it cannot be guessed. And a peer is only admitted once it has shown, as the
first bytes of its connection, a secret that the authenticated gRPC service handed out.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil

from baton.errors import TransferError
from baton.net.rpc import is_loopback
from baton.process.tasks import end
from kv_transfer.metrics import RESTARTS
from kv_transfer.transport import CONNECT_TIMEOUT_S, Inbox, Transport
from kv_transfer.ucx.child import COMMAND
from kv_transfer.ucx.connection import UcxConnection
from kv_transfer.ucx.listener import UcxListener
from kv_transfer.ucx.process import UcxProcess
from kv_transfer.ucx_child import frames

_CHECK_TIMEOUT_S = 60.0
_BACKOFF_S = (0.0, 0.1, 0.5, 2.0, 5.0)  # pause before a restart, by the number of short lives in a row
_RESTART_S = 6.0  # a bit more than the longest pause: a restart that takes longer is not waited for
_SHORT_LIFE_S = 20.0
_MAX_HOST_CHARS = 255
# For host memory over TCP, several times faster than UCX's defaults. Not set where there is RDMA: untested there.
_TCP_ENVIRONMENT = {"UCX_RNDV_SCHEME": "put_zcopy", "UCX_RNDV_THRESH": "32k", "UCX_RNDV_FRAG_MEM_TYPE": "host"}

_log = logging.getLogger(__name__)


@cache
def why_unavailable() -> str:
    """Return the reason if UCX cannot be used, else "". Tried once, in another process: this one never loads UCX."""
    try:
        asked = subprocess.run(
            [*COMMAND, "--check"], env=environment("localhost"), stdin=subprocess.DEVNULL, capture_output=True,
            timeout=_CHECK_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"ucxx cannot be loaded (not within {_CHECK_TIMEOUT_S:.0f} s)"
    if asked.returncode == 0:
        return ""
    said = asked.stderr.decode(errors="replace").strip().splitlines()
    return f"ucxx cannot be loaded ({said[-1] if said else f'exit code {asked.returncode}'})"


class UcxTransport(Transport):
    """Keeps a UCX process running, restarting it when it dies. Create it in the event loop that will run it."""

    name = "ucx"

    def __init__(self, host: str) -> None:
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._links = itertools.count(1)
        self._connections: dict[int, UcxConnection] = {}  # of the current process
        self._listener: UcxListener | None = None
        self._has_lived = False
        self._num_short_lives = 0
        self._restarting: asyncio.Task[None] | None = None
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The id of the current process, which may have ended."""
        return self._process.pid

    async def listen(self, host: str, inbox: Inbox) -> UcxListener:
        """See `Transport`. UCX accepts on all addresses; a connection that does not show a secret is closed."""
        self._listener = UcxListener(await self._alive(), host, inbox)
        await self._listener.ready()
        return self._listener

    async def ready(self) -> None:
        """See `Transport`. Waits while a process starts."""
        await self._alive()

    async def connect(self, host: str, port: int, secret: bytes, on_close: Callable[[], None]) -> UcxConnection:
        """See `Transport`. The timeout starts once there is a process."""
        connection: UcxConnection | None = None
        try:
            process = await self._alive()
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                link = next(self._links)
                connection = self._connections[link] = UcxConnection(process, link)
                await connection.open(host[:_MAX_HOST_CHARS], port, secret, on_close)
        except (TransferError, TimeoutError) as error:
            if connection:
                await connection.close()
            raise TransferError(f"no UCX connection to the decode node: {str(error) or 'timed out'}") from error
        return connection

    async def close(self) -> None:
        """See `Transport`. Returns when the process has exited."""
        if self._restarting:
            await end(self._restarting)
        await self._process.close()

    def _start(self) -> UcxProcess:
        self._started_s = self._loop.time()
        try:
            return UcxProcess(environment(self._host), self._hear, self._on_end)
        except OSError as error:
            raise TransferError(f"the UCX process cannot be started: {error.strerror}") from error

    async def _alive(self) -> UcxProcess:
        """Return a process that has started; waits for a restart if need be. Raises TransferError if there is none."""
        while True:
            process = self._process
            try:
                await process.started()
                return process
            except TransferError:
                if self._restarting is None or self._restarting.done():
                    raise
                done, _ = await asyncio.wait([self._restarting], timeout=_RESTART_S)
                if not done:
                    raise

    def _hear(self, report: frames.Report) -> None:
        match report:
            case frames.Connected(link) if link in self._connections:
                self._connections[link].connected()
            case frames.Gone(link, reason) if link in self._connections:
                self._connections.pop(link).lose(reason)
            case _ if self._listener:
                self._listener.hear(report)

    def _on_end(self) -> None:
        """Called when the process is dead, and with it its connections and the messages in flight."""
        self._has_lived = self._has_lived or self._process.has_started
        self._restarting = self._loop.create_task(self._restart())
        lost, self._connections = self._connections, {}
        for connection in lost.values():
            connection.lose("the UCX process has ended")
        if self._listener:
            self._listener.lose()

    async def _restart(self) -> None:
        process = self._process
        await process.wait()
        if not self._has_lived and (process.is_unable or self._num_short_lives):
            return  # no use to restart: UCX cannot be loaded, or two processes in a row died without ever working
        RESTARTS.inc()
        _log.error("UCX process %d has ended, which fails the transfers in flight: %s", process.pid, process.reason)
        while self._process is process:
            is_short = self._loop.time() - self._started_s < _SHORT_LIFE_S
            self._num_short_lives = self._num_short_lives + 1 if is_short else 0
            await asyncio.sleep(_BACKOFF_S[min(self._num_short_lives, len(_BACKOFF_S) - 1)])
            with contextlib.suppress(TransferError):  # too few descriptors, or too little memory: try again
                self._process = self._start()
        if self._listener:
            self._listener.attach(self._process)


def environment(host: str) -> dict[str, str]:
    """Return the environment of the UCX process: this process's, without BATON_ variables, plus UCX options.

    BATON_ variables hold secrets. UCX options that the operator has set are kept. UCX opens a port on each network
    device that it uses, through which anybody can write to its memory; so without RDMA it may only use that of `host`.
    With RDMA, UCX chooses the devices itself.
    """
    options = {"UCX_WARN_UNUSED_ENV_VARS": "n"}
    if not _has_rdma():
        options |= _TCP_ENVIRONMENT | {"UCX_TLS": "tcp", "UCX_NET_DEVICES": _device_of(host)}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    return {name: value for name, value in options.items() if value} | inherited


def _device_of(host: str) -> str:
    for device, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == host for address in addresses):
            return device
    return "lo" if is_loopback(host) else ""


def _has_rdma() -> bool:
    devices = Path("/sys/class/infiniband")
    return devices.is_dir() and any(devices.iterdir())
