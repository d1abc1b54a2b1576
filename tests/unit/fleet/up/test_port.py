import socket

import pytest

from baton.errors import ConfigError
from fleet.up.port import number, reserve
from router.ports import admin_listener


def test_only_routers_can_share_a_reserved_port():
    with reserve("127.0.0.1", 0) as held:
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", number(held)))
        with socket.create_server(("127.0.0.1", number(held)), reuse_port=True) as router:
            connection = socket.create_connection(router.getsockname(), timeout=5)
            router.settimeout(5)
            router.accept()[0].close()
            connection.close()


def test_a_reserved_port_without_a_router_refuses_connections():
    with reserve("127.0.0.1", 0) as held, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", number(held)), timeout=5)


def test_another_fleets_shared_port_counts_as_taken():
    said = (
        r"cannot listen on 127\.0\.0\.1:\d+: Address already in use; stop the process that listens there, or .* --port"
    )
    taken = pytest.raises(ConfigError, match=said)
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other, taken:
        reserve("127.0.0.1", other.getsockname()[1])


def test_a_reserved_port_is_taken_before_anybody_listens_there():
    """Two fleets that start at the same time, or --admin-port that is --port: half of the requests would go astray."""
    taken = pytest.raises(ConfigError, match=r"Address already in use; .* --admin-port")
    with reserve("127.0.0.1", 0) as held, taken:
        reserve("127.0.0.1", number(held), "--admin-port", shared=False)


def test_one_router_listens_on_a_reserved_admin_port_and_a_second_one_is_refused():
    taken = pytest.raises(ConfigError, match=r"cannot listen on .*: Address already in use")
    with reserve("127.0.0.1", 0, "--admin-port", shared=False) as held:
        port = number(held)
        for _ in range(2):  # the second time as a router that was restarted, while old connections linger
            with admin_listener("127.0.0.1", port) as router:
                for host in ("127.0.0.1", "0.0.0.0"):
                    with taken:
                        admin_listener(host, port)
                with taken:
                    reserve("127.0.0.1", port, "--admin-port", shared=False)
                client = socket.create_connection(("127.0.0.1", port), timeout=5)
                router.accept()[0].close()
                assert client.recv(1) == b""
                client.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_lingering_connections_do_not_prevent_a_reservation():
    with socket.create_server(("127.0.0.1", 0)) as before:
        client = socket.create_connection(before.getsockname(), timeout=5)
        before.accept()[0].close()  # this side lingers
        assert client.recv(1) == b""
        client.close()
        port = before.getsockname()[1]
    with reserve("127.0.0.1", port) as held:
        assert number(held) == port


@pytest.mark.parametrize(
    ("host", "port", "advice"),
    [
        ("127.0.0.1", 70000, "choose another port with --port"),
        ("no.such.host.invalid", 8000, "set --host to an address of this machine"),
        ("203.0.113.7", 8000, "set --host to an address of this machine"),
    ],
)
def test_an_address_that_cannot_be_bound_is_a_clear_error(host: str, port: int, advice: str):
    with pytest.raises(ConfigError, match=f"cannot listen on {host}:{port}: .+; {advice}"):
        reserve(host, port)
