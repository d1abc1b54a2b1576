"""Packing, fetching and digesting blocks with Triton: in the interpreter, or on a GPU."""

import os

import pytest
import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("torch sees no GPU, and Triton's interpreter is off", allow_module_level=True)
pytest.importorskip("triton")

from kernels.triton.blocks import digest_blocks, fetch_blocks, pack_blocks, unpack_blocks

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("num_bytes", [4096, 24584, 1003])
def test_blocks_packed_and_unpacked(num_bytes):
    pool = torch.randint(0, 256, (12, num_bytes), dtype=torch.uint8).to(DEVICE)
    ids = torch.tensor([7, 0, 11, 3]).to(DEVICE)
    packed = torch.zeros(4, num_bytes, dtype=torch.uint8, device=DEVICE)
    pack_blocks(pool, ids, packed)
    assert torch.equal(packed, pool[ids])

    other, to = torch.zeros_like(pool), ids.flip(0)
    unpack_blocks(packed, other, to)
    assert torch.equal(other[to], pool[ids])
    assert other[[1, 2, 4, 5, 6, 8, 9, 10]].eq(0).all()


@pytest.mark.parametrize("num_bytes", [4096, 24584, 1003])
def test_blocks_fetched_from_an_address(num_bytes):
    source = torch.randint(0, 256, (12, num_bytes), dtype=torch.uint8).to(DEVICE)
    blocks, here, there = torch.zeros_like(source)[:9], [8, 2, 3], [0, 11, 4]
    ids = torch.tensor([*there, *here, 0]).to(DEVICE)
    fetch_blocks(source.data_ptr(), ids, blocks)
    assert torch.equal(blocks[here], source[there])
    assert blocks[[0, 1, 4, 5, 6, 7]].eq(0).all()
    assert ids[-1].item() == digest_of(source, there)
    for few in ([1], [0, 2, 0, 1]):
        with pytest.raises(ValueError, match="needs contiguous blocks"):
            fetch_blocks(source.data_ptr(), torch.tensor(few), blocks)
    with pytest.raises(ValueError, match="needs contiguous blocks"):
        digest_blocks(ids, source.t())


def digest_of(pool: torch.Tensor, ids: list[int]) -> int:
    numbers = torch.tensor([*ids, 0]).to(DEVICE)
    digest_blocks(numbers, pool)
    return numbers[-1].item()


def splitmix(words: list[int]) -> int:
    """The digest by its definition."""
    mask, total = 2**64 - 1, 0
    for number, word in enumerate(words, 1):
        x = (word + number * 0x9E3779B97F4A7C15) & mask
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
        x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
        total += x ^ x >> 31
    return total & mask


@pytest.mark.parametrize("num_bytes", [64, 24584, 1003])
def test_a_digest_is_that_of_the_words_in_their_order(num_bytes):
    pool = torch.randint(0, 256, (6, num_bytes), dtype=torch.uint8)
    ids = [4, 0, 3]
    words = pool[ids].view(torch.int64) if num_bytes % 8 == 0 else pool[ids]
    assert digest_of(pool.to(DEVICE), ids) % 2**64 == splitmix(words.flatten().tolist())


def test_every_flipped_bit_and_other_blocks_show_in_the_digest():
    pool = torch.randint(0, 256, (6, 512), dtype=torch.uint8).to(DEVICE)
    ids = [4, 0, 3]
    seen = {digest_of(pool, ids), digest_of(pool, ids[::-1]), digest_of(pool, ids[:2])}
    for bit in range(0, 8 * 512, 97):
        pool[3, bit // 8] ^= 1 << bit % 8
        seen.add(digest_of(pool, ids))
        pool[3, bit // 8] ^= 1 << bit % 8
    assert len(seen) == 3 + len(range(0, 8 * 512, 97))


def test_a_buffer_that_does_not_fit_is_refused():
    pool = torch.zeros(4, 64, dtype=torch.uint8, device=DEVICE)
    for ids, shape in [([1, 2], (1, 64)), ([1], (1, 32))]:
        with pytest.raises(ValueError, match="cannot hold"):
            pack_blocks(pool, torch.tensor(ids), torch.zeros(shape, dtype=torch.uint8, device=DEVICE))
    with pytest.raises(ValueError, match="cannot hold"):
        unpack_blocks(torch.zeros(64, 2, dtype=torch.uint8).t(), pool, torch.tensor([0, 1]))


def test_no_blocks_are_no_work():
    pool = torch.zeros(4, 64, dtype=torch.uint8, device=DEVICE)
    pack_blocks(pool, torch.empty(0, dtype=torch.int64), torch.empty(0, 64, dtype=torch.uint8, device=DEVICE))
