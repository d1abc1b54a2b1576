"""A node's cached blocks, evicted by least recent use, and within a prefix from its end."""

from collections import OrderedDict
from collections.abc import Sequence

from router.placing.expected_blocks import ExpectedBlocks, num_leading_of


class BlockCache:
    """A cache bounded by `capacity`, which shrinks while requests hold blocks."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, hashes: Sequence[int], expected: ExpectedBlocks | None = None, now_s: float = 0.0) -> int:
        """Return how many leading blocks are cached or expected."""
        if not hashes:
            return 0
        num_held = num_leading_of(hashes, self._blocks)
        return num_held if expected is None else expected.extend(hashes, num_held, now_s)

    def touch(self, hashes: Sequence[int]) -> None:
        """Mark blocks as used, or add them. The last one is evicted first."""
        blocks = self._blocks
        for block in reversed(hashes):
            blocks[block] = None
            blocks.move_to_end(block)
        self.shrink(self.capacity)

    def shrink(self, capacity: int) -> None:
        """Limit the cache to this capacity from now on."""
        self.capacity = capacity
        while len(self._blocks) > max(capacity, 0):
            self._blocks.popitem(last=False)
