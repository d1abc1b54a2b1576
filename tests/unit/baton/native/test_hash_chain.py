"""The compiled chain of hashes equals hashlib's, with and without SHA instructions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.native import build, hash_chain
from baton.native.hash_chain import hashed


@pytest.fixture(scope="module")
def built(compiled):
    return compiled(build.HASH_CHAIN)


@pytest.mark.parametrize("portably", [False, True])
def test_hashes_equal_those_of_hashlib(built, portably):
    chain = hash_chain.load(built, portably=portably)

    @given(st.binary(min_size=16, max_size=16), st.binary(max_size=2000), st.integers(1, 400))
    def equal(parent, blocks, block_bytes):
        assert chain(parent, blocks, block_bytes) == hashed(parent, blocks, block_bytes)

    equal()


@pytest.mark.parametrize("portably", [False, True])
def test_hashes_are_right_for_every_length_of_padding(built, portably):
    chain = hash_chain.load(built, portably=portably)
    for block_bytes in range(1, 260):
        blocks = bytes(i % 251 for i in range(5 * block_bytes + block_bytes // 2))
        assert chain(bytes(range(16)), blocks, block_bytes) == hashed(bytes(range(16)), blocks, block_bytes)


def test_a_short_parent_and_a_text_without_a_full_block(built):
    chain = hash_chain.load(built)
    assert chain(b"short", b"12345678", 4) == hashed(b"short", b"12345678", 4)
    assert chain(bytes(16), b"123", 4) == hashed(bytes(16), b"123", 4) == b""
