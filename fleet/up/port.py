"""Reserves the fleet's ports from before the first service starts until the last one has ended.

The supervisor binds them but never listens, so that no node that asks for a free port can take them. Routers share the
HTTP port (SO_REUSEPORT), and no other program can bind it. An admin port belongs to one router, and the kernel refuses
a second listener; until that router listens, another program could.
"""

import errno
import socket

from baton.errors import ConfigError


def reserve(host: str, port: int, flag: str = "--port", *, shared: bool = True) -> socket.socket:
    """Return a socket that reserves `port`, or any free one for 0. Raises ConfigError if the port is taken.

    `shared` says whether several routers will listen there, or one.
    """
    try:
        if not 0 <= port < 2**16:
            raise OverflowError("ports are numbers up to 65535")  # getaddrinfo would use the port modulo 65536
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        alone = _bind(family, address, socket.SO_REUSEADDR)  # or else we might share another fleet's port
        if not shared:
            return alone
        alone.close()
        return _held(family, address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", "") or error
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; {_advice(error, flag)}") from None


def _advice(error: Exception, flag: str) -> str:
    if isinstance(error, socket.gaierror) or getattr(error, "errno", 0) == errno.EADDRNOTAVAIL:
        return "set --host to an address of this machine"
    in_use = getattr(error, "errno", 0) == errno.EADDRINUSE
    return f"{'stop the process that listens there, or ' if in_use else ''}choose another port with {flag}"


def number(reserved: socket.socket) -> int:
    """Return the reserved port's number."""
    return int(reserved.getsockname()[1])


def _held(family: int, address: object) -> socket.socket:
    try:
        return _bind(family, address, socket.SO_REUSEPORT)
    except OSError:  # connections of a server that has ended linger; with this, what is held looks free to `reserve`
        return _bind(family, address, socket.SO_REUSEPORT, socket.SO_REUSEADDR)


def _bind(family: int, address: object, *options: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        sock.bind(address)  # type: ignore[arg-type] # whatever getaddrinfo says fits the family
    except BaseException:
        sock.close()
        raise
    return sock
