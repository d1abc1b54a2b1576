"""Ownership of the KV pool's blocks, and the prefix cache in them.

A block is *free* (no content), *held* (ref_count > 0) or *evictable* (published, ref_count 0). Published blocks form
chains: each knows its parent, and a request that holds one holds its ancestors too. A request releases its chain from
leaf to root, so the oldest evictable block never has a published child: eviction is leaf first.

This module knows nothing of tensors; hashes and tokens come from the request.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import NamedTuple

from baton.kv.prefix_hash import BlockHash
from engine.request import Request

_NO_PARENT = -1


class Content(NamedTuple):
    """What a published block holds. It is compared on each hit, so that a hash collision is a miss."""

    parent: int  # block id, or _NO_PARENT
    cache_salt: bytes
    token_ids: list[int]


class BlockManager:
    """Blocks [0, num_blocks) of a pool, and the prefix cache in them."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._ref_counts = [0] * num_blocks
        self._free = deque(range(num_blocks))
        self._evictable: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._by_hash: dict[BlockHash, int] = {}
        self._published: dict[int, tuple[BlockHash, Content]] = {}
        self._stored: dict[BlockHash, None] = {}
        self._evicted: dict[BlockHash, None] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be allocated, evictable ones included."""
        return len(self._free) + len(self._evictable)

    @property
    def num_cached_blocks(self) -> int:
        """Evictable blocks: no request holds them, but a request may find the prefix in them."""
        return len(self._evictable)

    @property
    def has_events(self) -> bool:
        """Whether the set of published blocks has changed since `take_events`."""
        return bool(self._stored or self._evicted)

    def num_blocks_for(self, num_tokens: int) -> int:
        """How many blocks it takes to hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def find(self, request: Request, max_tokens: int) -> list[int]:
        """Return the published blocks of the longest cached prefix, of at most `max_tokens` tokens. Changes nothing."""
        found: list[int] = []
        num_full = max_tokens // self.block_size
        for index, block_hash in enumerate(request.hashes(num_full)[:num_full]):
            block_id = self._by_hash.get(block_hash)
            if block_id is None or self._published[block_id][1] != self._content(request, index, found):
                break
            found.append(block_id)
        return found

    def allocate(self, request: Request, found: list[int], num_blocks: int, num_spare: int = 0) -> bool:
        """Give a request that has no blocks those that `find` just found, and new ones up to `num_blocks` in total.

        Returns False, and changes nothing, if fewer than `num_spare` free blocks would be left.
        """
        num_revived = sum(not self._ref_counts[block_id] for block_id in found)
        if self.num_free_blocks - num_revived - (num_blocks - len(found)) < num_spare:
            return False
        for block_id in found:
            self._hold(block_id)
        request.block_ids = found + [self._take() for _ in range(num_blocks - len(found))]
        request.chain = list(found)
        return True

    def grow(self, request: Request, num_tokens: int) -> bool:
        """Allocate blocks for the request's first `num_tokens` tokens. Returns False, changing nothing, if too few."""
        num_new = self.num_blocks_for(num_tokens) - len(request.block_ids)
        if num_new > self.num_free_blocks:
            return False
        request.block_ids += [self._take() for _ in range(num_new)]
        return True

    def publish(self, request: Request) -> None:
        """Publish the request's full computed blocks: other requests may find them in the prefix cache.

        If a block with the same content is already published, the request holds that one too, so that its chain stays
        complete.
        """
        num_full = request.num_computed_tokens // self.block_size
        hashes = request.hashes(num_full)
        for index in range(len(request.chain), num_full):
            content = self._content(request, index, request.chain)
            known = self._by_hash.get(hashes[index])
            if known is None:
                known = request.block_ids[index]
                self._register(known, hashes[index], content)
            elif self._published[known][1] != content:
                return  # a hash collision: the following blocks would get a parent with other content
            else:
                self._hold(known)
            request.chain.append(known)

    def release(self, request: Request) -> None:
        """Release all blocks that a request holds, leaf first. Published blocks stay in the cache, evictable."""
        for index in range(len(request.block_ids) - 1, -1, -1):
            own = request.block_ids[index]
            if index < len(request.chain) and request.chain[index] != own:
                self._drop(request.chain[index])
            self._drop(own)
        request.block_ids, request.chain = [], []

    def retract(self, request: Request) -> None:
        """Unpublish the request's blocks and all blocks computed from them, so that no request finds them again."""
        bad = set(request.chain)
        grown = True
        while grown:
            children = {block_id for block_id, (_, content) in self._published.items() if content.parent in bad} - bad
            bad |= children
            grown = bool(children)
        for block_id in bad & self._published.keys():
            self._unregister(block_id)
            if block_id in self._evictable:
                del self._evictable[block_id]
                self._free.append(block_id)

    def take_events(self) -> tuple[list[BlockHash], list[BlockHash]]:
        """(stored, evicted): the net change of the published blocks since the last call."""
        events = list(self._stored), list(self._evicted)
        self._stored, self._evicted = {}, {}
        return events

    def published(self) -> list[BlockHash]:
        """The hashes of all published blocks, parents before children, for rebuilding an index."""
        return list(self._by_hash)

    def check(self, requests: Iterable[Request]) -> None:
        """Raise RuntimeError unless exactly the blocks of `requests` are held, and none is lost."""
        expected = [0] * self.num_blocks
        for request in requests:
            pinned = [block for block, own in zip(request.chain, request.block_ids, strict=False) if block != own]
            for block_id in request.block_ids + pinned:
                expected[block_id] += 1
        if expected != self._ref_counts:
            wrong = [i for i in range(self.num_blocks) if expected[i] != self._ref_counts[i]]
            raise RuntimeError(f"ref_counts of blocks {wrong[:8]} differ from the number of requests that hold them")
        num_held = sum(count > 0 for count in self._ref_counts)
        if num_held + self.num_free_blocks != self.num_blocks or set(self._free) & self._published.keys():
            raise RuntimeError(f"{num_held} held and {self.num_free_blocks} free blocks are not {self.num_blocks}")

    def _content(self, request: Request, index: int, chain: list[int]) -> Content:
        parent = chain[index - 1] if index else _NO_PARENT
        return Content(parent, request.generation.cache_salt, list(request.block_tokens(index)))

    def _take(self) -> int:
        if self._free:
            block_id = self._free.popleft()
        else:
            block_id, _ = self._evictable.popitem(last=False)
            self._unregister(block_id)
        self._ref_counts[block_id] = 1
        return block_id

    def _hold(self, block_id: int) -> None:
        self._ref_counts[block_id] += 1
        self._evictable.pop(block_id, None)

    def _drop(self, block_id: int) -> None:
        self._ref_counts[block_id] -= 1
        if self._ref_counts[block_id]:
            return
        if block_id in self._published:
            self._evictable[block_id] = None
        else:
            self._free.append(block_id)

    def _register(self, block_id: int, block_hash: BlockHash, content: Content) -> None:
        self._by_hash[block_hash] = block_id
        self._published[block_id] = (block_hash, content)
        _toggle(block_hash, self._evicted, self._stored)

    def _unregister(self, block_id: int) -> None:
        block_hash, _ = self._published.pop(block_id)
        del self._by_hash[block_hash]
        _toggle(block_hash, self._stored, self._evicted)


def _toggle(block_hash: BlockHash, undone: dict[BlockHash, None], done: dict[BlockHash, None]) -> None:
    """Record an event in `done`, or cancel the opposite one if `undone` has it: nobody has been told of that yet."""
    if block_hash in undone:
        del undone[block_hash]
    else:
        done[block_hash] = None
