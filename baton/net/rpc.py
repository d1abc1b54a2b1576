"""gRPC channels and servers with Baton's options: keepalive pings, size limits, the service token, mutual TLS.

The pings detect a half-open connection within 2 s and a frozen peer within 2.5 s. A server with neither a token nor TLS
may only listen on loopback; `bind_address` refuses anything else.
"""

from __future__ import annotations  # grpc's types are generic in their stubs only

import hmac
import ipaddress
import os
from collections.abc import Awaitable, Callable
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors that matter also come as statuses, which Baton logs itself

import grpc
from grpc import aio

from baton.errors import ConfigError
from baton.net.tls import Identity

MAX_MESSAGE_BYTES = 16 * 2**20
_TOKEN_KEY = "authorization"  # noqa: S105 - the name of a header, not a secret
_PROBE = "/grpc.health.v1.Health/Check"  # needs no token: orchestrators have none, and it reveals only node health

_COMMON_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),  # how long the peer's kernel may not answer
    ("grpc.http2.ping_timeout_ms", 1500),  # how long its process may not answer, as when frozen; default: a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),
]
_CLIENT_OPTIONS = [
    *_COMMON_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # also the timeout of an attempt: on a busy host 0.1 s is too short
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # channels share no connection
]
_SERVER_OPTIONS = [
    *_COMMON_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
]


def channel(address: str, tls: Identity | None = None) -> aio.Channel:
    """Return a client channel to `host:port`. Each call on it must pass `metadata(token)`."""
    if tls is None:
        return aio.insecure_channel(address, options=_CLIENT_OPTIONS)
    credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
    named = [("grpc.ssl_target_name_override", tls.name)] if tls.name else []
    return aio.secure_channel(address, credentials, options=[*_CLIENT_OPTIONS, *named])


def metadata(token: str) -> aio.Metadata:
    """Return the metadata that calls must carry. An interceptor would cost a task per call, and outlive a cancel."""
    return aio.Metadata((_TOKEN_KEY, f"Bearer {token}")) if token else aio.Metadata()


def server(token: str = "") -> aio.Server:
    """Return a server that refuses calls without `token`. With an empty token it accepts all calls."""
    return aio.server(options=_SERVER_OPTIONS, interceptors=[_RequireToken(token)] if token else [])


def open_port(server: aio.Server, address: str, tls: Identity | None = None) -> int:
    """Make `server` listen on `host:port`; returns the port. With TLS, clients must show a certificate.

    Raises ConfigError if the port is taken.
    """
    try:
        if tls is None:
            return server.add_insecure_port(address)
        pair = [(tls.key, tls.certificate)]
        return server.add_secure_port(address, grpc.ssl_server_credentials(pair, tls.authority, True))
    except RuntimeError:
        raise ConfigError(f"cannot listen on {address}: is the port taken?") from None


def bind_address(host: str, port: int, token: str, tls: Identity | None = None) -> str:
    """Return `host:port`. Raises ConfigError if that would expose an unauthenticated service to other hosts."""
    if not token and tls is None and not is_loopback(host):
        raise ConfigError(
            f"refusing to listen on {host} without a service token: set BATON_SERVICE_TOKEN (the same on every "
            "service of the fleet) or --tls-cert, --tls-key and --tls-ca, or listen on 127.0.0.1"
        )
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a socket bound to `host` can only be reached from this host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _RequireToken(aio.ServerInterceptor):
    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        if handler_call_details.method == _PROBE:
            return await continuation(handler_call_details)
        given = dict(handler_call_details.invocation_metadata or ()).get(_TOKEN_KEY, "")
        if hmac.compare_digest(str(given).encode(), self._expected.encode()):
            return await continuation(handler_call_details)
        return _REFUSE


async def _refuse(requests: Any, context: aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or wrong service token")


# A stream handler, since it refuses without reading: a unary handler would wait for a request first.
_REFUSE: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(_refuse)
