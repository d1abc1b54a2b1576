"""The sockets that a router listens on.

Several routers may share a port (SO_REUSEPORT); a port that anything else uses raises ConfigError.
"""

import os
import socket
from urllib.parse import urlsplit

from baton.errors import ConfigError

_ANY = ("0.0.0.0", "::")  # noqa: S104
_SOCKET_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
    (socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),  # detects within two minutes that a client's host is gone
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 128 * 1024),  # or the kernel buffers megabytes for a slow reader
]


def listen(host: str, port: int) -> socket.socket:
    """Return a bound socket, whose options every connection inherits. Raises ConfigError if it cannot be bound."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    for level, option, value in _SOCKET_OPTIONS:
        listener.setsockopt(level, option, value)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from None
    return listener


def shown_address(host: str, listener: socket.socket, redis_url: str) -> str:
    """Return the address at which others reach the listener: `host`, and the port that was bound.

    For a listener on all addresses, the host is this host's address on the route to Redis.
    """
    if host in _ANY:
        host = _own_address(redis_url) or host
    port = listener.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _own_address(redis_url: str) -> str:
    """Return this host's address on the route to Redis, or "" if there is none."""
    url = urlsplit(redis_url)
    if not url.hostname:
        return ""
    try:
        family, kind, _, _, address = socket.getaddrinfo(url.hostname, url.port or 6379, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # UDP, so nothing is sent
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return ""
