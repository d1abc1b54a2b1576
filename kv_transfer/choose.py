"""Which transport a node uses, decided once at start."""

from baton.errors import ConfigError
from kv_transfer.loopback import LoopbackTransport
from kv_transfer.tcp import TcpTransport
from kv_transfer.transport import Transport
from kv_transfer.ucx import UcxTransport, why_unavailable


def choose(name: str) -> tuple[str, str]:
    """(transport, warning or empty) for `auto`, `ucx` or `tcp`. Raises ConfigError where ucx is wanted and missing."""
    if name not in ("auto", "ucx"):
        return name, ""
    reason = why_unavailable()
    if not reason:
        return "ucx", ""
    if name == "ucx":
        raise ConfigError(f"--transport ucx: {reason}; install ucxx, or choose tcp")
    return "tcp", f"KV blocks travel over tcp, not ucx: {reason}"


def make(name: str, host: str) -> Transport:
    """The transport of that name for a node at `host`; called in the event loop that will run it."""
    if name == "ucx":
        return UcxTransport(host)
    if name == "tcp":
        return TcpTransport()
    if name == "loopback":
        return LoopbackTransport()
    raise ConfigError(f"no transport is named {name!r}: there are ucx, tcp and loopback")
