"""How a scheduler and its steps use a block manager, in two calls."""

from engine.blocks import BlockManager
from engine.request import Request

BLOCK_SIZE = 4


def compute(blocks: BlockManager, request: Request, num_tokens: int | None = None) -> None:
    """Compute as a step does: the KV of the first `num_tokens` tokens is in the pool afterwards."""
    request.num_computed_tokens = request.num_tokens if num_tokens is None else num_tokens
    blocks.publish(request)


def admit(blocks: BlockManager, request: Request) -> bool:
    found = blocks.find(request, request.num_tokens - 1)
    request.num_computed_tokens = len(found) * BLOCK_SIZE
    return blocks.allocate(request, found, blocks.num_blocks_for(request.num_tokens))
