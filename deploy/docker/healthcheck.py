"""Exits with 0 if this container's service is healthy. Routers are checked over HTTP, nodes by gRPC's health service.

The kind of service is read from its command line, and its address from its environment.
"""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

_TIMEOUT_S = 8.0


def router(address: str) -> bool:
    """Return whether a router is alive."""
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def node(address: str) -> bool:
    """Return whether a node serves; it does not while it loads its weights or drains."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main(command: list[str], environ: dict[str, str]) -> int:
    """Check the service with this command line and environment; return the exit code."""
    is_router = "router" in command
    address = f"{environ['BATON_HOST']}:{environ.get('BATON_PORT', '8000' if is_router else '7001')}"
    return 0 if (router if is_router else node)(address) else 1


def _of_process(pid: str, what: str) -> list[str]:
    return Path(f"/proc/{pid}/{what}").read_bytes().decode().rstrip("\0").split("\0")


def _service() -> str:
    """Return the pid of the process that tini started."""
    children = Path("/proc/1/task/1/children").read_text().split()
    return children[0] if children else "1"


if __name__ == "__main__":
    pid = _service()
    environ = dict(entry.partition("=")[::2] for entry in _of_process(pid, "environ"))
    sys.exit(main(_of_process(pid, "cmdline"), {**os.environ, **environ}))
