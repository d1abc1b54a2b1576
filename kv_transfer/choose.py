"""The transports that a node can use, best first. Two nodes agree on one of them when they connect."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from baton.errors import ConfigError
from kv_transfer.shm.transport import ShmTransport
from kv_transfer.tcp.transport import TcpTransport
from kv_transfer.transport import Transport
from kv_transfer.ucx.transport import UcxTransport, why_unavailable

if TYPE_CHECKING:
    from kv_transfer.device_blocks import DeviceBlocks

AUTO = ("shm", "ucx", "tcp")  # a single copy within a host; RDMA where there is any; works everywhere
MAKERS: dict[str, Callable[[str], Transport]] = {  # by name, from a node's host; cuda also needs a pool
    "shm": lambda _: ShmTransport(),
    "ucx": UcxTransport,
    "tcp": lambda _: TcpTransport(),
}


def choose(wanted: str, *, on_gpu: bool = False) -> tuple[str, ...]:
    """Return the transports to try, best first. `wanted` is a transport's name or `auto`; `on_gpu`: the KV pool is.

    Raises ConfigError if ucx is named but missing, or cuda is named and the KV pool is not on a GPU.
    """
    if wanted == "cuda" and not on_gpu:
        raise ConfigError("--transport cuda: this node's KV is in host memory; choose auto, or --device cuda")
    if wanted == "ucx" and (reason := why_unavailable()):
        raise ConfigError(f"--transport ucx: {reason}; install ucxx, or choose tcp")
    if wanted == "auto":
        return ("cuda", *AUTO) if on_gpu else AUTO
    return (wanted,)


def make(name: str, host: str, gpu_blocks: "DeviceBlocks | None" = None) -> Transport:
    """Make the transport `name` for a node at `host`. Call it in the event loop that will run the transport.

    `gpu_blocks`: the blocks of the KV pool, if that is on a GPU. Raises ConfigError for an unknown name, TransferError
    if this system lacks the transport; a missing UCX is only noticed at its first use.
    """
    if name == "cuda" and gpu_blocks:
        from kv_transfer.cuda.transport import CudaTransport  # imports torch

        return CudaTransport(gpu_blocks)
    if name not in MAKERS:
        raise ConfigError(f"unknown transport {name!r}: choose auto, cuda, shm, ucx or tcp")
    return MAKERS[name](host)


class Transports:
    """The transports of one node, each made at its first use. `wanted` is as for `choose`, the rest as for `make`."""

    def __init__(self, wanted: str, host: str, gpu_blocks: "DeviceBlocks | None" = None) -> None:
        self.names = choose(wanted, on_gpu=gpu_blocks is not None)
        self._host, self._gpu_blocks = host, gpu_blocks
        self._made: dict[str, Transport] = {}

    def get(self, name: str) -> Transport:
        """Return the transport of that name. Raises as `make`."""
        if name not in self._made:
            self._made[name] = make(name, self._host, self._gpu_blocks)
        return self._made[name]

    async def drop(self, name: str) -> None:
        """Close the transport if it was made; the next `get` makes a new one."""
        if transport := self._made.pop(name, None):
            await transport.close()

    async def close(self) -> None:
        """Release what the transports own. Close their listeners and connections first."""
        for transport in self._made.values():
            await transport.close()
