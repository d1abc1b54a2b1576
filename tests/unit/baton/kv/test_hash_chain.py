"""The compiled chain of hashes is hashlib's, with and without SHA instructions."""

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.kv import hash_chain
from baton.kv.hash_chain import hashed


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    return hash_chain.build(tmp_path_factory.mktemp("chain"))


@pytest.mark.parametrize("portably", [False, True])
def test_equals_hashlib(built, portably):
    chain = hash_chain.load(built, portably=portably)

    @given(st.binary(min_size=16, max_size=16), st.binary(max_size=2000), st.integers(1, 400))
    def equal(parent, blocks, block_bytes):
        assert chain(parent, blocks, block_bytes) == hashed(parent, blocks, block_bytes)

    equal()


@pytest.mark.parametrize("portably", [False, True])
def test_every_length_of_padding(built, portably):
    chain = hash_chain.load(built, portably=portably)
    for block_bytes in range(1, 260):
        blocks = bytes(i % 251 for i in range(5 * block_bytes + block_bytes // 2))
        assert chain(bytes(range(16)), blocks, block_bytes) == hashed(bytes(range(16)), blocks, block_bytes)


def test_other_parents_and_no_blocks(built):
    chain = hash_chain.load(built)
    assert chain(b"short", b"12345678", 4) == hashed(b"short", b"12345678", 4)
    assert chain(bytes(16), b"123", 4) == hashed(bytes(16), b"123", 4) == b""


def test_without_a_compiler_hashlib_does_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        hash_chain.build(tmp_path)
    monkeypatch.setattr(hash_chain, "library", lambda: tmp_path / "none.so")
    assert hash_chain.fastest() is hashed


def test_a_source_that_does_not_compile_leaves_nothing(tmp_path, monkeypatch):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    source = tmp_path / "hash_chain.cpp"
    source.write_text("this is no C++")
    monkeypatch.setattr(hash_chain, "SOURCE", source)
    with pytest.raises(subprocess.CalledProcessError):
        hash_chain.build(tmp_path / "built")
    assert not list((tmp_path / "built").iterdir())
