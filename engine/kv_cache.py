"""The KV pool: one flat allocation in the layout of `baton.kv.layout`, and a view of it for each layer.

`engine.blocks` keeps track of which block belongs to which request.
"""

import torch
from torch import Tensor

from baton.errors import ConfigError
from baton.kv.layout import KVLayout
from kernels.cpu.memory import huge_pages, populate

MIN_LAYER_GROUPS = 4
_POPULATED_BYTES = 256 << 20  # of a CPU pool are backed by memory at once, the rest on first write; blocks go in order


def layers_per_group(num_layers: int) -> int:
    """Largest divisor of num_layers that leaves at least MIN_LAYER_GROUPS groups, so that transfer overlaps compute."""
    fitting = [size for size in range(1, num_layers // MIN_LAYER_GROUPS + 1) if num_layers % size == 0]
    return max(fitting, default=1)


class KVCache:
    """The pool of a node."""

    def __init__(self, layout: KVLayout, num_blocks: int, device: torch.device) -> None:
        self.layout = layout
        self.num_blocks = num_blocks
        self.pool = _allocate(layout.pool_bytes(num_blocks), device)  # flat uint8
        self.layers = [self._view(layer) for layer in range(layout.num_layers)]
        if device.type == "cpu":
            for group in self.pool.view(layout.num_layer_groups, -1):
                populate(group[: _POPULATED_BYTES // layout.num_layer_groups])

    def _view(self, layer: int) -> Tensor:
        """A strided view of one layer: [num_blocks, planes, num_kv_heads, block_size, head_dim]."""
        layout = self.layout
        group, inner = divmod(layer, layout.layers_per_group)
        shape = (layout.num_layer_groups, self.num_blocks, layout.layers_per_group, layout.num_planes)
        block = (layout.num_kv_heads, layout.block_size, layout.head_dim)
        return self.pool.view(getattr(torch, layout.dtype)).view(*shape, *block)[group, :, inner]


def _allocate(num_bytes: int, device: torch.device) -> Tensor:
    """Allocate zeros, or raise ConfigError. On a CPU they take physical memory only once populated or written to."""
    try:
        if device.type == "cpu":
            return huge_pages(num_bytes)
        return torch.zeros(num_bytes, dtype=torch.uint8, device=device)
    except (OSError, torch.OutOfMemoryError):
        raise ConfigError(f"no memory for a KV pool of {num_bytes >> 20} MiB: set --kv-memory to less") from None
