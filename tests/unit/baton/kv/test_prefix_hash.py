"""Equal prefixes have equal hashes, in every process; unequal ones do not."""

import subprocess
import sys
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.kv.prefix_hash import HASH_BYTES, PackedHashes, block_hashes, packed_hashes, root_hash, stretched_root

tokens = st.lists(st.integers(0, 2**31), max_size=40)


@given(tokens, st.integers(1, 8))
def test_only_full_blocks_have_hashes(token_ids, block_size):
    assert len(block_hashes(token_ids, block_size, root_hash("m"))) == len(token_ids) // block_size


@given(tokens, tokens, st.integers(1, 8))
def test_only_common_prefixes_have_common_hashes(ours, theirs, block_size):
    a, b = (block_hashes(t, block_size, root_hash("m")) for t in (ours, theirs))
    for i, (left, right) in enumerate(zip(a, b, strict=False), 1):
        assert (left == right) == (ours[: i * block_size] == theirs[: i * block_size])


@given(tokens, st.integers(1, 8), st.data())
def test_a_chain_can_be_continued_from_its_last_hash(token_ids, block_size, data):
    cut = data.draw(st.integers(0, len(token_ids) // block_size)) * block_size
    whole = block_hashes(token_ids, block_size, root_hash("m"))
    head = block_hashes(token_ids[:cut], block_size, root_hash("m"))
    tail = block_hashes(token_ids[cut:], block_size, head[-1] if head else root_hash("m"))
    assert head + tail == whole


@given(tokens, st.slices(40))
def test_packed_hashes_are_a_sequence(token_ids, part):
    packed, listed = (make(token_ids, 2, root_hash("m")) for make in (packed_hashes, block_hashes))
    part = slice(part.start, part.stop)
    assert list(packed) == [packed[i] for i in range(len(packed))] == listed
    assert [packed[i] for i in range(-len(packed), 0)] == listed
    assert list(packed[part]) == listed[part]
    assert b"".join(packed) == packed.packed


def test_an_index_beyond_the_last_hash_is_an_error():
    for at in (2, -3):
        with pytest.raises(IndexError):
            PackedHashes(bytes(2 * HASH_BYTES))[at]


def test_model_and_salt_change_every_hash_and_cannot_be_confused():
    roots = {root_hash("m"), root_hash("n"), root_hash("m", b"t"), root_hash("mt"), root_hash("", b"mt")}
    assert len(roots | set(map(stretched_root, roots))) == 10


def test_hashes_equal_the_documented_formula():
    parent = root_hash("m")
    expected = sha256((1).to_bytes(4, "little") + (2).to_bytes(4, "little") + parent).digest()[:16]
    assert block_hashes([1, 2], 2, parent) == [expected]


def test_hashes_are_equal_in_another_process():
    code = "from baton.kv.prefix_hash import *; print(block_hashes(range(8), 4, root_hash('m', b's'))[-1].hex())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert other.stdout.strip() == block_hashes(range(8), 4, root_hash("m", b"s"))[-1].hex()
