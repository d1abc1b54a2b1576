"""Ids are read exactly as by a JSON decoder, or not at all."""

import contextlib
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.native import build, id_text


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    built = build.build(build.ID_TEXT, tmp_path_factory.mktemp("ids"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "library", lambda _: built)
        return id_text.load()


@given(
    ids=st.lists(st.integers(0, 2**32 - 2), min_size=1),
    indent=st.sampled_from([None, 0, 3]),
    around=st.tuples(st.binary(max_size=5), st.binary(max_size=5)),
)
def test_lists_of_ids_are_parsed(read, ids, indent, around):
    text = json.dumps(ids, indent=indent).encode()
    whole, start = around[0] + text + around[1], len(around[0])
    found, end = read(whole, start, 2**32 - 1)
    assert (found.tolist(), end) == (ids, start + len(text))
    assert (read(whole, start, 100) is None) == (max(ids) >= 100)


@given(text=st.text(alphabet="[], \n0123-.e", max_size=12))
def test_a_parsed_list_equals_what_json_parses(read, text):
    found = read(text.encode(), 0, 1000)
    if found is not None:
        assert found[0].tolist() == json.loads(text[: found[1]])
    elif text[:1] == "[":
        with contextlib.suppress(ValueError):
            said, _ = json.JSONDecoder().raw_decode(text)
            assert not said or any(type(i) is not int or not 0 <= i < 1000 for i in said) or "-0" in text


@pytest.mark.parametrize(
    "text", [b"", b"[", b"[]", b"[1", b"[1,", b"[1,]", b"[01]", b" [1]", b"[1.0]", b'["1"]', b"[[1]]"]
)
def test_any_other_text_is_not_parsed(read, text):
    assert read(text, 0, 1000) is None
