"""Waits until a router serves: it answers GET /ready with 200 once a node of each pool is attached."""

import asyncio
from typing import Any

from baton.net import http_get
from fleet.up.process import Process

_INTERVAL_S = 0.05
_ANSWER_TIMEOUT_S = 2.0


async def until_ready(process: Process, host: str, port: int) -> dict[str, Any]:
    """Wait until the router is ready; return its facts."""
    facts = await asyncio.shield(process.ready)  # it listens; before, another router on the shared port might answer
    while not await _is_ready(host, port):  # noqa: ASYNC110 - another process
        await asyncio.sleep(_INTERVAL_S)
    return facts


async def _is_ready(host: str, port: int) -> bool:
    try:
        return (await http_get.get(host.strip("[]"), port, "/ready", _ANSWER_TIMEOUT_S))[0] == 200
    except OSError:
        return False
