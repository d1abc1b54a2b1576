"""The transport over UCX tag messages: RDMA where there is any, TCP elsewhere. The only module that imports ucxx.

A message is looked at before it is received (`tag_probe`), and a receive is posted only into memory that the inbox
names for exactly that tag and length; so nothing can ever be written for a message that was not expected. Cancelling
a receive does not stop UCX from writing, and neither does closing the endpoint at once: writes are over when, after the
close, the receive itself has ended. That is what `lost` waits for.

A tag is no proof of who sends it, but nobody can guess one; and a peer is spoken to only after it has shown, as the
first bytes of its connection, the secret that the authenticated gRPC service handed out.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import psutil

from baton.errors import TransferError
from baton.rpc import is_loopback
from kv_transfer.transport import CONNECT_TIMEOUT_S, STALL_S, Inbox, Transport
from kv_transfer.ucx_endpoints import Binding, UcxConnection, UcxListener
from kv_transfer.ucx_progress import Progress

_CLOSE_TIMEOUT_S = 5.0
# Host memory over TCP: several times faster than UCX's defaults. Untried on RDMA, so left alone there.
_TCP_ENVIRONMENT = {"UCX_RNDV_SCHEME": "put_zcopy", "UCX_RNDV_THRESH": "32k", "UCX_RNDV_FRAG_MEM_TYPE": "host"}


def why_unavailable() -> str:
    """Empty where UCX can be used, else the reason."""
    try:
        _load()
    except (ImportError, OSError) as error:
        return f"ucxx cannot be loaded ({error})"
    return ""


class UcxTransport(Transport):
    """A UCX context and worker of its own; create it in the event loop that will run it."""

    name = "ucx"

    def __init__(self, host: str, stall_s: float = STALL_S) -> None:
        self._stall_s = stall_s
        self._binding = _load()
        ucx = self._binding.ucx
        features = (ucx.Feature.TAG, ucx.Feature.STREAM, ucx.Feature.WAKEUP)
        self._context = ucx.UCXContext(_options(host), features)
        self._worker = ucx.UCXWorker(self._context, enable_delayed_submission=False, enable_python_future=False)
        self._listener: UcxListener | None = None
        self._progress = Progress(self._worker, self._take_messages, ucx.UCXError)

    async def listen(self, host: str, inbox: Inbox) -> UcxListener:
        """UCX accepts on all addresses; whoever does not show a secret is cut off."""
        self._listener = UcxListener(self._binding, self._worker, self._progress, host, inbox, self._stall_s)
        return self._listener

    async def connect(self, host: str, port: int, secret: bytes, on_close: Callable[[], None]) -> UcxConnection:
        """Raises TransferError when the peer does not welcome the secret in time."""
        try:
            endpoint = self._binding.ucx.UCXEndpoint.create(self._worker, host, port, True)
        except (self._binding.ucx.UCXError, RuntimeError) as error:  # the latter: an address that is none
            raise TransferError(f"no UCX connection to the decode node: {error}") from error
        connection = UcxConnection(self._binding, endpoint, self._progress, on_close, self._stall_s)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await connection.say_hello(secret)
        except (TransferError, TimeoutError) as error:
            await connection.close()
            raise TransferError(f"no UCX connection to the decode node: {error or 'timed out'}") from error
        return connection

    async def close(self) -> None:
        """After this no UCX object is left, and the process can exit."""
        try:
            await self._progress.close(_CLOSE_TIMEOUT_S)
        finally:
            self._listener = self._worker = self._context = None

    def _take_messages(self) -> None:
        """Receive or drop every message that waits. None may be left: UCX would drain it when the worker ends."""
        ucx, array = self._binding
        while (probe := self._worker.tag_probe(ucx.UCXXTag(0), ucx.UCXXTagMask(0))).matched:
            tag = probe.sender_tag
            if not (self._listener and self._listener.receive(tag.value, probe.length)):
                nothing = array(bytearray(1))  # the message is truncated to it, not transferred
                self._progress.submit(self._worker.tag_recv(nothing, tag), nothing)


def _load() -> Binding:
    """ucxx's binding of UCX. The environment is set before, because importing it sets what is unset to worse."""
    if not _has_rdma():
        for name, value in _TCP_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")
    import ucxx
    from ucxx._lib.arr import Array

    return Binding(ucxx.libucxx, Array)


def _options(host: str) -> dict[str, str]:
    """UCX options for this host, where the operator sets none and there is no RDMA.

    UCX opens a port on each device that it uses, and whoever reaches it can write memory: none but `host`'s, then.
    """
    wanted = {} if _has_rdma() else {"TLS": "tcp", "NET_DEVICES": _device_of(host)}
    return {name: value for name, value in wanted.items() if value and f"UCX_{name}" not in os.environ}


def _device_of(host: str) -> str | None:
    for device, addresses in psutil.net_if_addrs().items():
        if any(address.address.partition("%")[0] == host for address in addresses):
            return device
    return "lo" if is_loopback(host) else None


def _has_rdma() -> bool:
    devices = Path("/sys/class/infiniband")
    return devices.is_dir() and any(devices.iterdir())
