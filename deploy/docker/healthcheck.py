"""Exits with 0 where the service of this container serves: routers are asked over HTTP, nodes by gRPC's health service.

Which of them it is says process 1's own command line; where it listens, the environment of the entry point.
"""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

_TIMEOUT_S = 8.0


def router(address: str) -> bool:
    """Whether a router lives."""
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=_TIMEOUT_S) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def node(address: str) -> bool:
    """Whether a node serves: it does not while it loads its weights, or drains."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main(command: list[str], environ: dict[str, str]) -> int:
    """`command` is that of the service, `environ` its environment."""
    is_router = "router" in command
    address = f"{environ['BATON_HOST']}:{environ.get('BATON_PORT', '8000' if is_router else '7001')}"
    return 0 if (router if is_router else node)(address) else 1


def _of_process(pid: str, what: str) -> list[str]:
    return Path(f"/proc/{pid}/{what}").read_bytes().decode().rstrip("\0").split("\0")


def _service() -> str:
    """The process that tini started."""
    children = Path("/proc/1/task/1/children").read_text().split()
    return children[0] if children else "1"


if __name__ == "__main__":
    pid = _service()
    environ = dict(entry.partition("=")[::2] for entry in _of_process(pid, "environ"))
    sys.exit(main(_of_process(pid, "cmdline"), {**os.environ, **environ}))
