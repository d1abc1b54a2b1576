"""Whether a router serves: it listens, and answers 200 to GET /ready once a node of each pool is attached."""

import asyncio
from typing import Any

from fleet.up.process import Process

_INTERVAL_S = 0.05
_ANSWER_TIMEOUT_S = 2.0


async def until_ready(process: Process, host: str, port: int) -> dict[str, Any]:
    """Returns what is known of the router once it is ready."""
    facts = await asyncio.shield(process.ready)  # listens: on a shared port another one might answer for it
    while not await _is_ready(host, port):  # noqa: ASYNC110 - another process
        await asyncio.sleep(_INTERVAL_S)
    return facts


async def _is_ready(host: str, port: int) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host.strip("[]"), port)
            try:
                writer.write(f"GET /ready HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError, ValueError):
        return False
