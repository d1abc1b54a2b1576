"""gRPC as Baton uses it: pings that notice half-open links in 2 s, frozen peers in 2.5 s; limits, tokens, mutual TLS.

Without a token and without TLS a server binds to loopback only (`bind_address` refuses anything else).
"""

from __future__ import annotations  # grpc's types take parameters in their stubs alone

import hmac
import ipaddress
import os
from collections.abc import Awaitable, Callable
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what matters of it reaches us as a status, and is told in our words

import grpc
from grpc import aio

from baton.errors import ConfigError
from baton.net.tls import Identity

MAX_MESSAGE_BYTES = 16 * 2**20
_TOKEN_KEY = "authorization"  # noqa: S105 - the name of a header, not a secret
_PROBE = "/grpc.health.v1.Health/Check"  # orchestrators have no token for it; it says whether a node serves, no more

_COMMON_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),  # without a sign of the other kernel
    ("grpc.http2.ping_timeout_ms", 1500),  # without one of the other process, be it frozen; a minute otherwise
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),
]
_CLIENT_OPTIONS = [
    *_COMMON_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # which is what an attempt may take: a busy host needs more than 0.1 s
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # a channel's death is its own
]
_SERVER_OPTIONS = [
    *_COMMON_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
]


def channel(address: str, tls: Identity | None = None) -> aio.Channel:
    """A client channel to `host:port`. Calls on it carry the token as `metadata`."""
    if tls is None:
        return aio.insecure_channel(address, options=_CLIENT_OPTIONS)
    credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
    named = [("grpc.ssl_target_name_override", tls.name)] if tls.name else []
    return aio.secure_channel(address, credentials, options=[*_CLIENT_OPTIONS, *named])


def metadata(token: str) -> aio.Metadata:
    """What a call has to carry. Not added by an interceptor: those cost a task per call, and outlive a cancel."""
    return aio.Metadata((_TOKEN_KEY, f"Bearer {token}")) if token else aio.Metadata()


def server(token: str = "") -> aio.Server:
    """A server that refuses calls without `token` (all calls pass where it is empty)."""
    return aio.server(options=_SERVER_OPTIONS, interceptors=[_RequireToken(token)] if token else [])


def open_port(server: aio.Server, address: str, tls: Identity | None = None) -> int:
    """Have `server` listen on `host:port`; the port, ConfigError where it is taken. TLS demands a certificate."""
    try:
        if tls is None:
            return server.add_insecure_port(address)
        pair = [(tls.key, tls.certificate)]
        return server.add_secure_port(address, grpc.ssl_server_credentials(pair, tls.authority, True))
    except RuntimeError:
        raise ConfigError(f"cannot listen on {address}: is the port taken?") from None


def bind_address(host: str, port: int, token: str, tls: Identity | None = None) -> str:
    """`host:port`, or ConfigError where that would offer an unauthenticated service to other hosts."""
    if not token and tls is None and not is_loopback(host):
        raise ConfigError(
            f"refusing to listen on {host} without a service token: set BATON_SERVICE_TOKEN (the same on every "
            "service of the fleet) or --tls-cert, --tls-key and --tls-ca, or listen on 127.0.0.1"
        )
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether only this host can reach a socket bound to `host`."""
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


# A handler of streams, which reads nothing: one of single requests would wait for the first message of a stream.
_REFUSE: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(_refuse)
