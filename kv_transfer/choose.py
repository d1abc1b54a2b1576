"""The transports of a node, best first. Which one a pair of nodes uses, they find out when they connect."""

from typing import TYPE_CHECKING

from baton.errors import ConfigError
from kv_transfer.loopback import LoopbackTransport
from kv_transfer.shm.transport import ShmTransport
from kv_transfer.tcp.transport import TcpTransport
from kv_transfer.transport import Transport
from kv_transfer.ucx.transport import UcxTransport, why_unavailable

if TYPE_CHECKING:
    from kv_transfer.device_blocks import DeviceBlocks

AUTO = ("shm", "ucx", "tcp")  # within one host one copy; RDMA where there is any; what there is everywhere


def choose(wanted: str, *, on_gpu: bool = False) -> tuple[str, ...]:
    """The transports to try, best first, for `auto` or a name. `on_gpu`: that is where the KV pool is.

    Raises ConfigError where ucx is wanted and missing, or cuda and there is no GPU.
    """
    if wanted == "cuda" and not on_gpu:
        raise ConfigError("--transport cuda: this node's KV is in host memory; choose auto, or --device cuda")
    if wanted == "ucx" and (reason := why_unavailable()):
        raise ConfigError(f"--transport ucx: {reason}; install ucxx, or choose tcp")
    if wanted == "auto":
        return ("cuda", *AUTO) if on_gpu else AUTO
    return (wanted,)


def make(name: str, host: str, gpu_blocks: "DeviceBlocks | None" = None) -> Transport:
    """The transport of that name for a node at `host`; called in the event loop that will run it.

    `gpu_blocks`: the KV pool's, where that is on a GPU.

    Raises TransferError where this system lacks it; ucx says so when it is first used.
    """
    if name == "shm":
        return ShmTransport()
    if name == "ucx":
        return UcxTransport(host)
    if name == "tcp":
        return TcpTransport()
    if name == "cuda" and gpu_blocks:
        from kv_transfer.cuda.transport import CudaTransport  # which wants torch

        return CudaTransport(gpu_blocks)
    if name == "loopback":
        return LoopbackTransport()
    raise ConfigError(f"no transport is named {name!r}: there are cuda, shm, ucx, tcp and loopback")


class Transports:
    """Those of one node, each made when a pair first needs it. `gpu_blocks`: as for `make`."""

    def __init__(self, wanted: str, host: str, gpu_blocks: "DeviceBlocks | None" = None) -> None:
        self.names = choose(wanted, on_gpu=gpu_blocks is not None)
        self._host, self._gpu_blocks = host, gpu_blocks
        self._made: dict[str, Transport] = {}

    def get(self, name: str) -> Transport:
        """Raises TransferError where this system lacks it."""
        if name not in self._made:
            self._made[name] = make(name, self._host, self._gpu_blocks)
        return self._made[name]

    async def drop(self, name: str) -> None:
        """Release it, if it was made; the next who needs it gets another one."""
        if transport := self._made.pop(name, None):
            await transport.close()

    async def close(self) -> None:
        """Release what the transports own; listeners and connections are closed before."""
        for transport in self._made.values():
            await transport.close()
