"""The router's HTTP application, on bare ASGI: authentication, routing, metrics and logs.

If API keys are configured, every route requires one, except the two probes, which reveal only their status. They are
answered before authentication, at the very place that exempts them, so no spelling of another path bypasses the check.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from baton.errors import BatonError, NoCapacity
from router.http import metrics as http_metrics
from router.http.account import Account
from router.http.auth import APIKeys
from router.http.error_format import MethodNotAllowed, NotFound
from router.http.exchange import ASGI, ClientGone, Exchange, Message, Receive, Scope, Send
from router.http.observer import Observer
from router.http.rate_limit import RateLimiter
from router.openai.generate import Dispatch

Handler = Callable[[Exchange], Awaitable[None]]

_PROBES = ("/health", "/ready")
_READING = ("GET", "HEAD")
_MODELS = "/v1/models/"  # what follows is a name, which clients encode
_log = logging.getLogger(__name__)


class App:
    """An ASGI application. `draining` is set when the router is about to end."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        dispatch: Dispatch,
        keys: APIKeys,
        cold_routes: ASGI,
        limiter: RateLimiter | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`handlers`: of POST routes; `cold_routes` serves all other paths. Without a `limiter` no rate is limited."""
        self.draining = False
        self._dispatch = dispatch
        self._keys = keys
        self._limiter = limiter
        self._cold_routes = cold_routes
        self._handlers = handlers
        self._observer = observer or Observer()
        self._num_in_flight = 0
        http_metrics.IN_FLIGHT.set_function(lambda: self._num_in_flight)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive)
        exchange.closing = self.draining
        if exchange.path in _PROBES and exchange.method not in _READING:
            exchange.send_error(MethodNotAllowed("This path takes GET", _READING))
        elif exchange.path == "/health":
            exchange.send(200, b'{"status":"ok"}')
        elif exchange.path == "/ready":
            exchange.send(*self._readiness())
        else:
            await self._authenticated(exchange, scope, receive, send)
        await exchange.sender.flush()
        exchange.close()

    def _readiness(self) -> tuple[int, bytes]:
        if self.draining:
            return 503, b'{"status":"draining"}'
        return (200, b'{"status":"ready"}') if self._dispatch.ready else (503, b'{"status":"no nodes"}')

    async def _authenticated(self, exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            exchange.account = Account(self._keys.tenant(exchange.header(b"authorization")), self._limiter)
        except BatonError as error:
            exchange.send_error(error)
            return
        handler = self._handlers.get(exchange.path)
        if "%" in exchange.path and not exchange.path.startswith(_MODELS):
            exchange.send_error(NotFound("There is nothing at this path, whose %-codes are not decoded"))
        elif handler is None:
            if exchange.method == "HEAD":  # served as a GET: uvicorn leaves the body out
                scope = {**scope, "method": "GET"}
            await self._cold_routes(scope, receive, _with_request_id(send, exchange.request_id))
        elif exchange.method != "POST":
            exchange.send_error(MethodNotAllowed("This path takes POST", allowed=("POST",)))
        else:
            self._observer.begin(exchange)
            self._num_in_flight += 1
            try:
                await self._generate(exchange, handler)
            finally:
                self._num_in_flight -= 1
            self._observer.end(exchange)

    async def _generate(self, exchange: Exchange, handler: Handler) -> None:
        try:
            await handler(exchange)
        except ClientGone:
            exchange.left = True
        except BatonError as error:
            _fail(exchange, error)
        except asyncio.CancelledError:
            _fail(exchange, NoCapacity("the router is shutting down"))
        except Exception:  # an edge: this request fails, the router keeps running
            _log.exception("a request failed", extra={"request_id": exchange.request_id})
            _fail(exchange, BatonError("internal error"))


def _fail(exchange: Exchange, error: BatonError) -> None:
    exchange.left = False
    if not exchange.sender.started:
        exchange.send_error(error)
    error.__traceback__ = None  # its frames hold the body and maybe the error: a cycle, freed only by the collector


def _with_request_id(send: Send, request_id: str) -> Send:
    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            message = {**message, "headers": headers}
        await send(message)

    return send_with_id
