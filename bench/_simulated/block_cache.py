"""A node's cached blocks: least recently used first out, and of a prefix its end before its beginning."""

from collections import OrderedDict
from collections.abc import Sequence

from router.placing.expected_blocks import ExpectedBlocks, num_leading_of


class BlockCache:
    """Bounded by `capacity`, which shrinks while requests hold blocks."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, hashes: Sequence[int], expected: ExpectedBlocks | None = None, now_s: float = 0.0) -> int:
        """How many leading blocks are there, or expected."""
        if not hashes:
            return 0
        num_held = num_leading_of(hashes, self._blocks)
        return num_held if expected is None else expected.extend(hashes, num_held, now_s)

    def touch(self, hashes: Sequence[int]) -> None:
        """They are used, or newly there. The last one is the first that may go."""
        blocks = self._blocks
        for block in reversed(hashes):
            blocks[block] = None
            blocks.move_to_end(block)
        self.shrink(self.capacity)

    def shrink(self, capacity: int) -> None:
        """Keep within that from now on."""
        self.capacity = capacity
        while len(self._blocks) > max(capacity, 0):
            self._blocks.popitem(last=False)
