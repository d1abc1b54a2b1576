"""Who else may listen on a router's ports: nobody on the admin port, and on the HTTP port routers of the same fleet.

`http.listener` binds with SO_REUSEPORT, because routers share the HTTP port. Without the checks here, two routers would
share any port silently, each with half of the connections.
"""

import asyncio
import socket

from baton.errors import ConfigError
from baton.net import redis_client
from baton.net.registry import list_nodes
from baton.process.settings import RouterConfig
from router.http.listener import listen

_PROBE_TIMEOUT_S = 1.0
_PROBE = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


def admin_listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens from now on, as the only one at its address. Raises ConfigError if one listens."""
    try:
        listener = listen(host, port)
    except ConfigError as error:
        raise ConfigError(f"admin port: {error.message}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)  # the kernel then refuses a second listener
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigError(f"admin port: cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


async def check_sharing(config: RouterConfig) -> None:
    """Raise ConfigError if the HTTP port is served by a process that is not a router of this fleet.

    Routers register before they listen, so those of this fleet are in its registry. Without Redis nothing is checked.
    A listener that does not answer counts for nothing: it may be a frozen router, whose registration has expired.
    """
    if not config.port or not await _is_served(config.host, config.port):
        return
    redis = redis_client.connect(config.redis_url, _PROBE_TIMEOUT_S)
    try:
        records = await list_nodes(redis)
    except redis_client.REDIS_ERRORS:
        return
    finally:
        await redis.aclose()
    here = socket.gethostname()
    ports = {r.address.rpartition(":")[2] for r in records if r.role == "router" and r.host == here}
    if str(config.port) not in ports:
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port}: a process that is not a router of this fleet listens "
            "there; choose another port with --port"
        )


async def _is_served(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(_PROBE)
                return bool(await reader.read(1))
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
