"""What a router listens on, and how others find it."""

import socket

import pytest

from baton.errors import ConfigError
from router.http.listener import listen, shown_address

REDIS = "redis://:secret@127.0.0.1:6379/0"


@pytest.mark.parametrize(
    ("host", "redis_url", "shown"),
    [
        ("127.0.0.1", "redis://10.0.0.1:6379/0", "127.0.0.1"),
        ("0.0.0.0", REDIS, "127.0.0.1"),
        ("0.0.0.0", "unix:///run/redis.sock", "0.0.0.0"),
        ("0.0.0.0", "redis://no-such-host.invalid/0", "0.0.0.0"),
    ],
)
def test_a_listener_on_all_addresses_registers_the_address_towards_redis(host: str, redis_url: str, shown: str) -> None:
    with listen(host, 0) as listener:
        assert shown_address(host, listener, redis_url) == f"{shown}:{listener.getsockname()[1]}"


def test_an_ipv6_address_is_in_brackets() -> None:
    try:
        listener = listen("::1", 0)
    except ConfigError:
        pytest.skip("no IPv6 here")
    with listener:
        port = listener.getsockname()[1]
        assert shown_address("::1", listener, REDIS) == f"[::1]:{port}"
        assert shown_address("::", listener, "redis://[::1]:6379/0") == f"[::1]:{port}"


def test_a_port_in_use_is_named_in_the_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="cannot listen on 127"):
        listen("127.0.0.1", taken.getsockname()[1])
