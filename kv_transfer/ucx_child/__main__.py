"""`python -m kv_transfer.ucx_child SOCKET REGION BYTES`, descriptors of its node's; with `--check`, whether UCX loads.

Lives no longer than its node: the kernel kills it when the node dies, and it ends with the node's end of the socket.
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
    """Serve until the node is gone."""
    try:
        loaded = binding.load()
    except (ImportError, OSError) as error:
        print(error, file=sys.stderr)  # noqa: T201 - the node reads it
        return 1
    if argv == ["--check"]:
        return 0
    sock, region, num_bytes = (int(argument) for argument in argv)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # clients' KV would be in it
    _live_as_long_as_the_node()
    node: FrameSocket[frames.Order] = FrameSocket(socket.socket(fileno=sock), frames.Order)
    Server(Worker(loaded), mapped(region, num_bytes), node).run()
    return 0


def _live_as_long_as_the_node() -> None:
    """Not shorter: a signal to all of its processes is the node's business, which may yet drain.

    Where it has died before this, the first look at its socket ends this process.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # without UCX's own clean-up, which may wait for peers
