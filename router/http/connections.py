"""How many connections there are: of each client address, and of all, which is what there are descriptors for."""

import asyncio
import ipaddress
import resource
from collections import Counter

_RESERVED_DESCRIPTORS = 256  # for nodes, Redis, logs
_IPV6_PREFIX_BITS = 64  # what one host or household has for itself


class Connections:
    """How many are open, by client address."""

    def __init__(self, max_per_address: int) -> None:
        """0 of `max_per_address` is no limit of its own: half of all."""
        half = max_connections() // 2
        self._max_per_address = min(max_per_address, half) if max_per_address else half
        self._open: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count one in; False where that address, or this process, has as many as it may."""
        if self._open[address] >= self._max_per_address or self._open.total() >= max_connections():
            return False
        self._open[address] += 1
        return True

    def leave(self, address: str) -> None:
        """Count one out that `enter` has counted in."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


def counted_address(transport: asyncio.Transport) -> str:
    """Under which a client is counted."""
    peer = transport.get_extra_info("peername")
    address = str(peer[0]) if isinstance(peer, tuple) else ""
    if ":" not in address:
        return address
    network = ipaddress.ip_network((address.partition("%")[0], _IPV6_PREFIX_BITS), strict=False)
    return str(network)


def max_connections() -> int:
    """How many clients this process has file descriptors for."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, limit - _RESERVED_DESCRIPTORS)


def raise_descriptor_limit() -> None:
    """Take as many file descriptors as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
