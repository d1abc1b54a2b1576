"""The transports of a node, best first. Which one a pair of nodes uses, they find out when they connect."""

from baton.errors import ConfigError
from kv_transfer.loopback import LoopbackTransport
from kv_transfer.shm.transport import ShmTransport
from kv_transfer.tcp.transport import TcpTransport
from kv_transfer.transport import Transport
from kv_transfer.ucx.transport import UcxTransport, why_unavailable

AUTO = ("shm", "ucx", "tcp")  # within one host one copy; RDMA where there is any; what there is everywhere


def choose(wanted: str) -> tuple[str, ...]:
    """The transports to try, best first, for `auto` or a name. Raises ConfigError where ucx is wanted and missing."""
    if wanted == "ucx" and (reason := why_unavailable()):
        raise ConfigError(f"--transport ucx: {reason}; install ucxx, or choose tcp")
    return AUTO if wanted == "auto" else (wanted,)


def make(name: str, host: str) -> Transport:
    """The transport of that name for a node at `host`; called in the event loop that will run it.

    Raises TransferError where this system lacks it; ucx says so when it is first used.
    """
    if name == "shm":
        return ShmTransport()
    if name == "ucx":
        return UcxTransport(host)
    if name == "tcp":
        return TcpTransport()
    if name == "loopback":
        return LoopbackTransport()
    raise ConfigError(f"no transport is named {name!r}: there are shm, ucx, tcp and loopback")


class Transports:
    """Those of one node, each made when a pair first needs it."""

    def __init__(self, wanted: str, host: str) -> None:
        self.names = choose(wanted)
        self._host = host
        self._made: dict[str, Transport] = {}

    def get(self, name: str) -> Transport:
        """Raises TransferError where this system lacks it."""
        if name not in self._made:
            self._made[name] = make(name, self._host)
        return self._made[name]

    async def drop(self, name: str) -> None:
        """Release it, if it was made; the next who needs it gets another one."""
        if transport := self._made.pop(name, None):
            await transport.close()

    async def close(self) -> None:
        """Release what the transports own; listeners and connections are closed before."""
        for transport in self._made.values():
            await transport.close()
