"""The HTTP server of a node's /metrics, for Prometheus."""

import asyncio
import hmac

from baton.errors import ConfigError
from baton.net.rpc import bind_address, is_loopback
from baton.telemetry.exposition import Exposition

_REQUEST_TIMEOUT_S = 5.0
_MAX_HEAD_BYTES = 8192


class MetricsServer:
    """Serves GET /metrics. Beyond loopback it requires the fleet's service token, like the other ports."""

    def __init__(self, host: str, port: int, token: str = "", exposition: Exposition | None = None) -> None:
        bind_address(host, port, token)
        self._host, self._port, self._token = host, port, token
        self._exposition = exposition or Exposition()
        self._expected = "" if is_loopback(host) else f"Bearer {token}"
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """Listen, and return the URL. Raises ConfigError if the port is taken."""
        try:
            self._server = await asyncio.start_server(self._answer, self._host, self._port, limit=_MAX_HEAD_BYTES)
        except OSError as error:
            raise ConfigError(f"cannot listen on {self._host}:{self._port} for metrics: {error.strerror}") from None
        port = self._server.sockets[0].getsockname()[1]
        return f"http://{bind_address(self._host, port, self._token)}/metrics"

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(self._response(head.decode("latin-1")))
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # a client that does not speak HTTP, or is too slow, gets no answer
        finally:
            writer.close()

    def _response(self, head: str) -> bytes:
        lines = head.split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        given = headers.get("authorization", "")
        if self._expected and not hmac.compare_digest(given.encode(), self._expected.encode()):
            return _http("401 Unauthorized", "text/plain", b"missing or wrong service token\n")
        if not lines[0].startswith(("GET /metrics ", "GET /metrics?")):
            return _http("404 Not Found", "text/plain", b"only GET /metrics\n")
        body, content_type = self._exposition.render(headers.get("accept", ""))
        return _http("200 OK", content_type, body)


def _http(status: str, content_type: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
