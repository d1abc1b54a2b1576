"""The compiled count equals Python's."""

import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.native import build, byte_count


@pytest.fixture(scope="module")
def count(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    built = build.build(build.BYTE_COUNT, tmp_path_factory.mktemp("count"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "library", lambda _: built)
        return byte_count.fastest()


@given(text=st.binary(max_size=50), times=st.integers(0, 40), marks=st.binary(max_size=5))
def test_the_count_equals_pythons(count, text, times, marks):
    assert count is not byte_count.counted
    assert list(count(text * times, marks)) == list(byte_count.counted(text * times, marks))


@pytest.mark.parametrize("size", [0, 1, 254, 255, 256, 510, 100_000])
def test_a_text_of_a_single_repeated_byte(count, size):
    assert list(count(b"[" * size, b"[{")) == [size, 0]
