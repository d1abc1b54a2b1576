import pytest

from baton.kv import prefix_hash
from baton.kv.prefix_hash import root_hash
from engine.blocks import BlockManager
from tests.unit.engine.block_use import BLOCK_SIZE, admit, compute


def test_prefix_is_shared_only_once_computed(make_request):
    blocks = BlockManager(16, BLOCK_SIZE)
    first, second, third = (make_request(range(11)) for _ in range(3))
    assert admit(blocks, first)
    assert admit(blocks, second)
    assert not set(first.block_ids) & set(second.block_ids)
    compute(blocks, first, 7)
    assert admit(blocks, third)
    assert third.block_ids[0] == first.block_ids[0]
    assert third.num_computed_tokens == 4
    blocks.check([first, second, third])


def test_last_token_is_never_taken_from_the_cache(make_request):
    blocks = BlockManager(16, BLOCK_SIZE)
    first, second = make_request(range(8)), make_request(range(8))
    assert admit(blocks, first)
    compute(blocks, first)
    assert len(blocks.find(second, 7)) == 1
    assert len(blocks.find(second, 8)) == 2


def test_salt_separates(make_request):
    blocks = BlockManager(16, BLOCK_SIZE)
    first, second = make_request(range(8), cache_salt=b"a"), make_request(range(8), cache_salt=b"b")
    assert admit(blocks, first)
    compute(blocks, first)
    assert blocks.find(second, 8) == []


@pytest.mark.parametrize(
    ("other", "num_shared"),
    [
        ({"token_ids": [0, 1, 2, 4, 4, 5, 6, 7]}, 0),
        ({"token_ids": range(8), "cache_salt": b"other"}, 0),
        ({"token_ids": [0, 1, 2, 3, 4, 5, 6, 8]}, 1),
    ],
)
def test_colliding_hashes_are_misses(make_request, monkeypatch, other, num_shared):
    def first_token(token_ids, block_size, parent):
        return [bytes([token_id]) for token_id in token_ids[::block_size]]

    monkeypatch.setattr("engine.request.block_hashes", first_token)
    blocks = BlockManager(16, BLOCK_SIZE)
    first, second = make_request(range(8)), make_request(**other)
    assert admit(blocks, first)
    compute(blocks, first)
    assert blocks.find(second, 8) == first.block_ids[:num_shared]
    assert admit(blocks, second)
    compute(blocks, second)
    assert second.chain == first.block_ids[:num_shared]
    blocks.check([first, second])


def test_same_block_under_another_prefix_is_a_miss(make_request, monkeypatch):
    def last_token(token_ids, block_size, parent):
        return [bytes([token_id]) for token_id in token_ids[block_size - 1 :: block_size]]

    monkeypatch.setattr("engine.request.block_hashes", last_token)
    blocks = BlockManager(16, BLOCK_SIZE)
    first, second, third = (
        make_request(tokens)
        for tokens in (
            [0, 0, 0, 1, 5, 5, 5, 2, 6, 6, 6, 4],
            [9, 9, 9, 3, 5, 5, 5, 2],
            [0, 0, 0, 1, 9, 9, 9, 5, 6, 6, 6, 4],
        )
    )
    for request in (first, second, third):
        assert admit(blocks, request)
        compute(blocks, request)
    assert second.chain == second.block_ids[:1]  # its second block hangs on another parent than the published one
    assert third.chain == [first.block_ids[0], third.block_ids[1]]


def test_equal_blocks_computed_twice_keep_chains_complete(make_request):
    blocks = BlockManager(8, BLOCK_SIZE)
    first, second = make_request([1, 2, 3, 4, 5]), make_request([1, 2, 3, 4, 9, 9, 9, 9, 9])
    assert admit(blocks, first)
    assert admit(blocks, second)
    compute(blocks, first)
    compute(blocks, second)
    assert second.chain == [first.block_ids[0], second.block_ids[1]]
    blocks.release(first)
    blocks.check([second])
    blocks.release(second)
    blocks.check([])
    third = make_request([1, 2, 3, 4, 9, 9, 9, 9, 9])
    assert len(blocks.find(third, 8)) == 2


def test_nothing_changes_if_there_are_too_few_blocks(make_request):
    blocks = BlockManager(3, BLOCK_SIZE)
    first = make_request(range(8))
    assert admit(blocks, first)
    compute(blocks, first)
    second = make_request(range(13))
    assert not admit(blocks, second)
    assert second.block_ids == []
    assert not blocks.grow(first, 13)
    assert blocks.grow(first, 12)
    blocks.check([first])


def test_spare_blocks_account_for_evictable_blocks_that_are_reused(make_request):
    blocks = BlockManager(4, BLOCK_SIZE)
    first = make_request(range(8))
    assert admit(blocks, first)
    compute(blocks, first)
    blocks.release(first)
    second = make_request(range(9))
    found = blocks.find(second, 8)
    assert not blocks.allocate(second, found, 3, num_spare=2)
    assert blocks.allocate(second, found, 3, num_spare=1)


def test_retract_unpublishes_descendants_and_no_other_blocks(make_request):
    blocks = BlockManager(8, BLOCK_SIZE)
    parent, sibling, child, other = (make_request(tokens) for tokens in (range(5), range(6), range(12), range(50, 54)))
    for request in (parent, sibling, child, other):
        assert admit(blocks, request)
        compute(blocks, request)
    blocks.release(child)
    blocks.take_events()
    blocks.retract(parent)
    blocks.retract(sibling)  # its blocks have been retracted already
    assert blocks.find(make_request(range(12)), 12) == []
    assert len(blocks.find(make_request(range(50, 54)), 4)) == 1
    for request in (parent, sibling, other):
        blocks.release(request)
    blocks.check([])
    assert len(blocks.take_events()[1]) == 3
    assert admit(blocks, make_request(range(100, 132)))  # all eight of them can be had


def test_the_check_finds_blocks_that_do_not_add_up(make_request):
    blocks = BlockManager(8, BLOCK_SIZE)
    request = make_request(range(8))
    assert admit(blocks, request)
    compute(blocks, request)
    for held in ([], [request, request]):
        with pytest.raises(RuntimeError, match=r"ref_counts of blocks \[0, 1\] differ"):
            blocks.check(held)
    lost, blocks._free[0] = blocks._free[0], request.block_ids[0]
    with pytest.raises(RuntimeError, match="are not 8"):  # free, and offered to others
        blocks.check([request])
    blocks._free[0] = lost
    blocks.check([request])
    blocks._free.popleft()
    with pytest.raises(RuntimeError, match="2 held and 5 free blocks are not 8"):
        blocks.check([request])


def test_events_are_net(make_request):
    blocks = BlockManager(1, BLOCK_SIZE)
    hashes = []
    for tokens in ([1] * 4, [2] * 4, [1] * 4):
        request = make_request(tokens)
        assert admit(blocks, request)
        compute(blocks, request)
        blocks.release(request)
        hashes.append(request.hashes(1)[0])
    assert blocks.take_events() == ([hashes[0]], [])
    request = make_request([2] * 4)
    assert admit(blocks, request)
    assert blocks.take_events() == ([], [hashes[0]])
    assert blocks.published() == []


def test_eviction_is_leaf_first(make_request):
    """What is left of a published chain is always a leading part of it, whatever was allocated in between."""
    blocks = BlockManager(10, BLOCK_SIZE)
    chain = make_request(range(25))
    assert admit(blocks, chain)
    compute(blocks, chain)
    blocks.release(chain)
    hashes = prefix_hash.block_hashes(list(range(25)), BLOCK_SIZE, root_hash("model"))
    for first in range(100, 130, 3):
        request = make_request(range(first, first + 9))
        assert admit(blocks, request)
        compute(blocks, request)
        blocks.release(request)
        known = [block_hash in set(blocks.published()) for block_hash in hashes]
        assert known == sorted(known, reverse=True)
    assert not any(known)
