"""The supervisor's control socket: `baton scale` and `baton down` send one JSON line and receive one.

Only the owner of BATON_HOME can open it. Each side waits for the other only up to a timeout.
"""

import asyncio
import json
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from baton.errors import BatonError, ConfigError

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

_MAX_LINE_BYTES = 64 * 1024
_LINE_TIMEOUT_S = 5.0


async def serve(path: Path, handle: Handler) -> asyncio.Server:
    """Answer each line with what `handle` returns, or with `{"error": …}` if it raises a BatonError."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_LINE_TIMEOUT_S):
                line = await reader.readline()
            writer.write(json.dumps(await _answer(line, handle)).encode() + b"\n")
            async with asyncio.timeout(_LINE_TIMEOUT_S):
                await writer.drain()
        except (OSError, TimeoutError, ValueError):
            pass  # a client that sends nothing gets no answer
        finally:
            writer.close()

    server = await asyncio.start_unix_server(connected, path, limit=_MAX_LINE_BYTES)
    os.chmod(path, 0o600)
    return server


async def _answer(line: bytes, handle: Handler) -> dict[str, Any]:
    try:
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError
    except ValueError:
        return {"error": "not a JSON object"}
    try:
        return await handle(message)
    except BatonError as error:
        return {"error": error.message}


def ask(path: str, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Send one message and return the answer. Raises ConfigError if the supervisor refuses or does not answer."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            connection.sendall(json.dumps(message).encode() + b"\n")
            line = connection.makefile("rb").readline()
        answer: dict[str, Any] = json.loads(line)
    except (OSError, ValueError):
        raise ConfigError(f"the fleet's supervisor does not answer on {path}") from None
    if "error" in answer:
        raise ConfigError(answer["error"])
    return answer
