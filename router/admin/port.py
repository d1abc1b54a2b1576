"""The admin port of a router process: metrics, the dashboard with its data, and traces.

    GET  /metrics               metrics of this process, for Prometheus
    GET  /dashboard             the dashboard, which shows /admin/fleet
    GET  /admin/fleet           the state of the fleet, as JSON
    GET  /admin/router          this router's recent statistics, for the other routers
    GET  /admin/trace/<id>      where a request's time went; `?here` asks no other router
    GET  /login, POST /login    a page that takes a key and sets a session cookie

Every path except the login requires an API key, the service token or that cookie, unless there are no keys and only
this host can connect (`auth`).
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import msgspec

from baton.errors import BatonError, InvalidRequest, Unauthenticated
from baton.process import tasks
from baton.process.settings import RouterConfig
from baton.telemetry.exposition import Exposition
from router.admin.auth import AdminAuth
from router.admin.fleet_report import FleetReport
from router.admin.pages import SAFE_HEADERS, page
from router.admin.peers import Peers
from router.admin.trace import Traces
from router.http.auth import APIKeys
from router.http.connections import Connections
from router.http.error_format import Header, MethodNotAllowed, NotFound
from router.http.exchange import ClientGone, Exchange, Receive, Scope, Send
from router.http.quiet_server import QuietServer
from router.nodes.rates import NodeRates
from router.serving.dispatch import Dispatcher

_TRACE = "/admin/trace/"
_DASHBOARD = "/dashboard"
_HTML = b"text/html; charset=utf-8"
_IDLE_TIMEOUT_S = 5
_BACKLOG = 64
_MAX_CONNECTIONS = 256  # per client address
_STOP_S = 2.0
_MAX_LOGIN_BYTES = 4096


class _Login(msgspec.Struct):
    key: str = ""


_LOGIN = msgspec.json.Decoder(_Login)

_log = logging.getLogger(__name__)


class AdminApp:
    """The ASGI application of the admin port."""

    def __init__(self, auth: AdminAuth, exposition: Exposition, report: FleetReport, traces: Traces) -> None:
        self._auth, self._exposition, self._report, self._traces = auth, exposition, report, traces
        self._routes: dict[str, Callable[[Exchange], Awaitable[None]]] = {
            "/metrics": self._metrics,
            _DASHBOARD: self._dashboard,
            "/admin/fleet": self._fleet,
            "/admin/router": self._router,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(scope, receive)
        try:
            await self._answer(exchange, scope.get("query_string", b""))
        except ClientGone:
            pass
        except BatonError as error:
            exchange.send_error(error)
        except Exception:  # an edge: this request fails, the router keeps running
            _log.exception("a request to the admin port failed", extra={"request_id": exchange.request_id})
            exchange.send_error(BatonError("internal error"))
        await exchange.sender.flush()
        exchange.close()

    async def _answer(self, exchange: Exchange, query: bytes) -> None:
        if exchange.path == "/login":
            await self._login(exchange)
            return
        try:
            self._auth.check(exchange.header(b"authorization"), exchange.header(b"cookie"), exchange.header(b"host"))
        except Unauthenticated:
            if exchange.path not in ("/", _DASHBOARD):
                raise
            _redirect(exchange, b"/login")
            return
        if exchange.method not in ("GET", "HEAD"):
            raise MethodNotAllowed("This path takes GET")
        if exchange.path == "/":
            _redirect(exchange, _DASHBOARD.encode())
        elif exchange.path.startswith(_TRACE):
            await self._trace(exchange, unquote(exchange.path.removeprefix(_TRACE)), only_here=query == b"here")
        elif (route := self._routes.get(exchange.path)) is not None:
            await route(exchange)
        else:
            raise NotFound("There is nothing at this path")

    async def _login(self, exchange: Exchange) -> None:
        if exchange.method == "GET":
            shown = page("login")
            exchange.send(200, shown.body, _HTML, shown.headers)
            return
        if exchange.method != "POST":
            raise MethodNotAllowed("This path takes GET and POST")
        try:
            key = _LOGIN.decode(await exchange.read_body(_check_login)).key
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise InvalidRequest('send {"key": "..."}', param="key") from None
        if not self._auth.is_open and not self._auth.knows(key.strip()):
            raise Unauthenticated("this is neither an API key nor the service token")
        cookie = (b"set-cookie", self._auth.new_cookie().encode())
        exchange.send(200, b'{"ok":true}', headers=[cookie, *SAFE_HEADERS])

    async def _metrics(self, exchange: Exchange) -> None:
        body, content_type = self._exposition.render(exchange.header(b"accept"))
        exchange.send(200, body, content_type.encode())

    async def _dashboard(self, exchange: Exchange) -> None:
        shown = page("dashboard")
        exchange.send(200, shown.body, _HTML, shown.headers)

    async def _fleet(self, exchange: Exchange) -> None:
        _send_json(exchange, await self._report.whole())

    async def _router(self, exchange: Exchange) -> None:
        _send_json(exchange, self._report.local())

    async def _trace(self, exchange: Exchange, request_id: str, *, only_here: bool) -> None:
        found = await self._traces.find(request_id, only_here=only_here)
        if found is None:
            raise NotFound("No router remembers this request: each keeps the last 2,048")
        _send_json(exchange, found)


class AdminPort:
    """The application on its socket, with the parts that it needs."""

    def __init__(
        self,
        config: RouterConfig,
        listener: socket.socket,
        keys: APIKeys,
        dispatcher: Dispatcher,
        exposition: Exposition,
        models: tuple[str, ...],
    ) -> None:
        peers = Peers(dispatcher.router_id, config.service_token)
        self._rates = NodeRates(lambda: dispatcher.links)
        report = FleetReport(dispatcher, peers, self._rates, models)
        auth = AdminAuth(config.admin_host, keys, config.service_token)
        app = AdminApp(auth, exposition, report, Traces(dispatcher, peers))
        self._listener = listener
        self._server = QuietServer(app, Connections(_MAX_CONNECTIONS), _BACKLOG, _IDLE_TIMEOUT_S, drain_s=1)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start to serve: clients can connect from now on."""
        self._listener.listen(_BACKLOG)
        serving = self._server.serve(sockets=[self._listener])
        self._tasks = [asyncio.create_task(serving, name="admin port"), asyncio.create_task(self._rates.run())]

    async def stop(self) -> None:
        """Close the port. Idempotent."""
        started, self._tasks = self._tasks, []
        if started:
            self._server.should_exit = True
            await asyncio.wait(started[:1], timeout=_STOP_S)
        for task in started:
            await tasks.end(task)


def _check_login(body: bytes) -> None:
    if len(body) > _MAX_LOGIN_BYTES:
        raise InvalidRequest(f"expected at most {_MAX_LOGIN_BYTES} bytes", param="key")


def _redirect(exchange: Exchange, where: bytes) -> None:
    exchange.send(303, b"", b"text/plain", [(b"location", where), *SAFE_HEADERS])


def _send_json(exchange: Exchange, value: dict[str, Any]) -> None:
    headers: list[Header] = list(SAFE_HEADERS)
    exchange.send(200, msgspec.json.encode(value), headers=headers)
