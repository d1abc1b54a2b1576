"""gRPC as Baton uses it: keepalive that notices half-open links in 3 s, bounded messages, a token on calls.

Without a token a server binds to loopback only (`bind_address` refuses anything else).
"""

from __future__ import annotations  # grpc's types take parameters in their stubs alone

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from grpc import aio

from baton.errors import ConfigError

MAX_MESSAGE_BYTES = 16 * 2**20
_TOKEN_KEY = "authorization"  # noqa: S105 - the name of a header, not a secret

_COMMON_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    ("grpc.keepalive_time_ms", 2000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]
_CLIENT_OPTIONS = [
    *_COMMON_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),  # a channel's death is its own
]
_SERVER_OPTIONS = [
    *_COMMON_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.so_reuseport", 0),
]


def channel(address: str, token: str = "") -> aio.Channel:
    """A client channel to `host:port` whose every call carries `token`."""
    return aio.insecure_channel(address, options=_CLIENT_OPTIONS, interceptors=_client_interceptors(token))


def metadata(token: str) -> list[tuple[str, str]]:
    """What a call on a channel made without a token has to carry.

    For hot paths and streams: interceptors cost a task per call, and those of a stream that is cancelled stay behind.
    """
    return [(_TOKEN_KEY, _header(token))] if token else []


def server(token: str = "") -> aio.Server:
    """A server that refuses calls without `token` (all calls pass where it is empty)."""
    return aio.server(options=_SERVER_OPTIONS, interceptors=[_RequireToken(token)] if token else [])


def bind_address(host: str, port: int, token: str) -> str:
    """`host:port`, or ConfigError where that would offer an unauthenticated service to other hosts."""
    if not token and not is_loopback(host):
        raise ConfigError(
            f"refusing to listen on {host} without a service token: set BATON_SERVICE_TOKEN (the same on every "
            "service of the fleet) or listen on 127.0.0.1"
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
        self._expected = _header(token)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        given = dict(handler_call_details.invocation_metadata or ()).get(_TOKEN_KEY, "")
        if hmac.compare_digest(str(given).encode(), self._expected.encode()):
            return await continuation(handler_call_details)
        return _REFUSE


async def _refuse(request: Any, context: aio.ServicerContext[Any, Any]) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "missing or wrong service token")


_REFUSE: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(_refuse)


def _header(token: str) -> str:
    return f"Bearer {token}"


def _client_interceptors(token: str) -> Sequence[aio.ClientInterceptor]:
    return [_UnaryToken(token), _ServerStreamToken(token), _StreamToken(token)] if token else []


class _AddToken:
    def __init__(self, token: str) -> None:
        self._pair = (_TOKEN_KEY, _header(token))

    def _with_token(self, details: aio.ClientCallDetails) -> aio.ClientCallDetails:
        metadata = aio.Metadata(*(details.metadata or ()), self._pair)
        return aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )


class _UnaryToken(_AddToken, aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._with_token(client_call_details), request)


class _ServerStreamToken(_AddToken, aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(self._with_token(client_call_details), request)


class _StreamToken(_AddToken, aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(self._with_token(client_call_details), request_iterator)
