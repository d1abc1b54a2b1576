"""The UCX process: `python -m kv_transfer.ucx_child SOCKET REGION BYTES`, or `--check` to test whether UCX loads.

SOCKET and REGION are inherited file descriptors, BYTES is the region's size. The process lives no longer than its node:
it ends when the node's end of the socket closes, and the kernel kills it when the node dies.
"""

import ctypes
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence

from kv_transfer.ucx_child import binding, frames
from kv_transfer.ucx_child.frame_socket import FrameSocket
from kv_transfer.ucx_child.region import mapped
from kv_transfer.ucx_child.server import Server
from kv_transfer.ucx_child.worker import Worker

_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> int:
    """Serve until the node is gone. Returns the exit code: 1 if UCX cannot be loaded."""
    try:
        loaded = binding.load()
    except (ImportError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the node reads it
        return 1
    if argv == ["--check"]:
        return 0
    sock, region, num_bytes = (int(argument) for argument in argv)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would contain clients' KV
    _live_as_long_as_the_node()
    node: FrameSocket[frames.Order] = FrameSocket(socket.socket(fileno=sock), frames.Order)
    Server(Worker(loaded), mapped(region, num_bytes), node).run()
    return 0


def _live_as_long_as_the_node() -> None:
    """Ignore signals meant for the node, which may still be draining, but have the kernel kill this process with it.

    If the node has died before this call, the first read from its socket ends this process.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # without UCX's own clean-up, which may wait for peers
