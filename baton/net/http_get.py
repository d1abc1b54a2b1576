"""The simplest HTTP client, in the event loop: one GET on a connection of its own."""

import asyncio
import re
import ssl

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
_MAX_BYTES = 16 * 2**20


async def get(
    host: str, port: int, path: str, timeout_s: float, *, key: str = "", tls: ssl.SSLContext | None = None
) -> tuple[int, bytes]:
    """Return status and body. `key` is sent as a bearer token. Raises OSError if there is no answer in HTTP in time."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, port, ssl=tls)
        try:
            name = f"[{host}]" if ":" in host else host
            authorization = f"Authorization: Bearer {key}\r\n" if key else ""
            writer.write(f"GET {path} HTTP/1.0\r\nHost: {name}:{port}\r\n{authorization}\r\n".encode())
            answer = b""
            while len(answer) <= _MAX_BYTES and (piece := await reader.read(2**16)):
                answer += piece
        finally:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    if not (status := _STATUS.match(head)):
        raise ConnectionError("the answer is not HTTP" if head else "the connection was closed")
    return int(status[1]), body
