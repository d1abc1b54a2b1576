"""Limits on open connections: per client address, and in all, by the number of file descriptors."""

import asyncio
import ipaddress
import resource
from collections import Counter

_RESERVED_DESCRIPTORS = 256  # for nodes, Redis, logs
_IPV6_PREFIX_BITS = 64  # a whole /64 counts as one client: a single host may have all of it


class Connections:
    """Counts open connections by client address."""

    def __init__(self, max_per_address: int) -> None:
        """`max_per_address` 0: half of all possible connections."""
        half = max_connections() // 2
        self._max_per_address = min(max_per_address, half) if max_per_address else half
        self._open: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count a new connection. Returns False, without counting, if the address or the process is at its limit."""
        if self._open[address] >= self._max_per_address or self._open.total() >= max_connections():
            return False
        self._open[address] += 1
        return True

    def leave(self, address: str) -> None:
        """Remove a connection that `enter` has counted."""
        self._open[address] -= 1
        if not self._open[address]:
            del self._open[address]


def counted_address(transport: asyncio.Transport) -> str:
    """Return the address under which a client is counted: its IPv4 address, or its IPv6 /64 network."""
    peer = transport.get_extra_info("peername")
    address = str(peer[0]) if isinstance(peer, tuple) else ""
    if ":" not in address:
        return address
    network = ipaddress.ip_network((address.partition("%")[0], _IPV6_PREFIX_BITS), strict=False)
    return str(network)


def max_connections() -> int:
    """Return for how many clients this process has file descriptors."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, limit - _RESERVED_DESCRIPTORS)


def raise_descriptor_limit() -> None:
    """Raise this process's limit on file descriptors as far as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
