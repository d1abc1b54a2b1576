"""Whether a router serves: it listens, and answers 200 to GET /ready once a node of each pool is attached."""

import asyncio
from typing import Any

from fleet.up.process import Process

_INTERVAL_S = 0.05
_ANSWER_TIMEOUT_S = 2.0


async def until_ready(process: Process, host: str, port: int) -> dict[str, Any]:
    """Returns what is known of the router once it is ready."""
    facts = await asyncio.shield(process.ready)  # listens: on a shared port another one might answer for it
    while await status(host, port, "/ready") != 200:  # noqa: ASYNC110 - another process
        await asyncio.sleep(_INTERVAL_S)
    return facts


async def status(host: str, port: int, path: str) -> int:
    """The status code that a GET gets; 0 where nobody answers."""
    try:
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            return await _get(host, port, path)
    except (OSError, TimeoutError, ValueError, IndexError):
        return 0


async def _get(host: str, port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection(host.strip("[]"), port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n".encode())
        return int((await reader.readline()).split()[1])
    finally:
        writer.close()
