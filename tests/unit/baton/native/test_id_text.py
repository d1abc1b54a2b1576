"""Ids are read exactly as by a JSON decoder, or not at all."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.native import build, id_text


@pytest.fixture(scope="module")
def read(load_compiled):
    return load_compiled(id_text, build.ID_TEXT)


@given(
    ids=st.lists(st.integers(0, 2**32 - 2), min_size=1),
    indent=st.sampled_from([None, 0, 3]),
    around=st.tuples(st.binary(max_size=5), st.binary(max_size=5)),
)
def test_lists_of_ids_are_parsed(read, ids, indent, around):
    text = json.dumps(ids, indent=indent).encode()
    whole, start = around[0] + text + around[1], len(around[0])
    found, end = read(whole, start, 2**32 - 1, len(ids))
    assert (found.tolist(), end) == (ids, start + len(text))
    assert (read(whole, start, 100, len(ids)) is None) == (max(ids) >= 100)
    assert read(whole, start, 2**32 - 1, len(ids) - 1) is None


@given(
    lists=st.lists(st.lists(st.integers(0, 2**32 - 2), min_size=1), min_size=1),
    indent=st.sampled_from([None, 0, 3]),
)
def test_lists_of_lists_are_parsed(read, lists, indent):
    text, num_ids = json.dumps(lists, indent=indent).encode(), sum(map(len, lists))
    found, end = read(text + b",[1]", 0, 2**32 - 1, num_ids)
    assert ([ids.tolist() for ids in found], end) == (lists, len(text))
    assert read(text, 0, 2**32 - 1, num_ids - 1) is None
    assert read(text, 0, max(map(max, lists)), num_ids) is None


def test_only_so_many_lists_are_parsed(read):
    for num_lists, is_parsed in ((id_text.MAX_LISTS, True), (id_text.MAX_LISTS + 1, False)):
        text = json.dumps([[7]] * num_lists).encode()
        assert (read(text, 0, 10, num_lists) is not None) == is_parsed


@given(text=st.text(alphabet="[], \n0123-.e", max_size=12))
def test_a_parsed_list_equals_what_json_parses(read, text):
    found = read(text.encode(), 0, 1000, 100)
    if found is not None:
        ids = found[0] if isinstance(found[0], list) else [found[0]]
        said = json.loads(text[: found[1]])
        assert [i.tolist() for i in ids] == (said if isinstance(found[0], list) else [said])
    elif text[:1] == "[":
        with contextlib.suppress(ValueError):
            said, _ = json.JSONDecoder().raw_decode(text)
            assert not said or (any(map(is_wrong, said)) and not all(map(is_list_of_ids, said))) or "-0" in text


def is_wrong(value):
    return type(value) is not int or not 0 <= value < 1000


def is_list_of_ids(value):
    return isinstance(value, list) and value and not any(map(is_wrong, value))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[",
        b"[]",
        b"[1",
        b"[1,",
        b"[1,]",
        b"[01]",
        b" [1]",
        b"[1.0]",
        b'["1"]',
        b"[[]]",
        b"[[1],2]",
        b"[1,[2]]",
        b"[[1]",
        b"[[1],]",
        b"[[[1]]]",
    ],
)
def test_any_other_text_is_not_parsed(read, text):
    assert read(text, 0, 1000, 10) is None
