"""The supervisor's control socket: `baton scale` and `baton down` send one JSON line and receive one.

While the supervisor is at work on its answer, it sends `{"waiting": …}` every second, so that a client can tell a long
wait from a frozen supervisor. Only the owner of BATON_HOME can open the socket. Each side waits for the other only up
to a timeout.
"""

import asyncio
import contextlib
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
_WAITING_INTERVAL_S = 1.0


async def serve(path: Path, handle: Handler, waits_for: Callable[[], str] = str) -> asyncio.Server:
    """Answer each line with what `handle` returns, or with `{"error": …}` if it raises a BatonError.

    `waits_for` describes what unfinished work waits for. Work is finished even if its client has hung up.
    """

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_LINE_TIMEOUT_S):
                line = await reader.readline()
            working = asyncio.create_task(_answer(line, handle))
            while not (await asyncio.wait([working], timeout=_WAITING_INTERVAL_S))[0]:
                with contextlib.suppress(OSError, TimeoutError):
                    await _send(writer, {"waiting": waits_for()})
            await _send(writer, working.result())
        except (OSError, TimeoutError, ValueError):
            pass  # a client that sends nothing gets no answer
        finally:
            writer.close()

    server = await asyncio.start_unix_server(connected, path, limit=_MAX_LINE_BYTES)
    os.chmod(path, 0o600)
    return server


async def _send(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    if writer.is_closing():
        return
    writer.write(json.dumps(message).encode() + b"\n")
    async with asyncio.timeout(_LINE_TIMEOUT_S):
        await writer.drain()


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


def ask(
    path: str, message: dict[str, Any], timeout_s: float, on_waiting: Callable[[str], object] = str
) -> dict[str, Any]:
    """Send one message and return the answer. Raises ConfigError if the supervisor refuses or does not answer.

    `timeout_s` is the longest silence: while the supervisor says what it waits for, which is passed to `on_waiting`,
    this waits too.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(path)
            connection.sendall(json.dumps(message).encode() + b"\n")
            lines = connection.makefile("rb")
            while "waiting" in (answer := json.loads(lines.readline())):
                on_waiting(answer["waiting"])
    except TimeoutError:
        raise ConfigError(
            f"the fleet's supervisor has been silent for {timeout_s:.0f} s: it is frozen, or this host is overloaded. "
            "It will act on this when it goes on; `baton down` stops the fleet"
        ) from None
    except (OSError, ValueError):
        raise ConfigError(f"the fleet's supervisor does not answer on {path}") from None
    if "error" in answer:
        raise ConfigError(answer["error"])
    done: dict[str, Any] = answer
    return done
