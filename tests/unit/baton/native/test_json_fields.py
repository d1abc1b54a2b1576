"""The compiled scan finds what a JSON parser finds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.native import build, json_fields
from baton.native.json_fields import MAX_FIELDS, Field

TEXTS = st.text(st.sampled_from('a",[]{}:\\ \n\x00é🎉'), max_size=6)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def find(load_compiled):
    return load_compiled(json_fields, build.JSON_FIELDS)


def counts(value):
    """Strings, containers and commas."""
    if isinstance(value, str):
        return 1, 0, 0
    if not isinstance(value, list | dict):
        return 0, 0, 0
    below = [counts(item) for item in (value.values() if isinstance(value, dict) else value)]
    strings, containers, commas = map(sum, zip((0, 0, 0), *below, strict=True))
    return strings + len(value) * isinstance(value, dict), containers + 1, commas + max(len(value) - 1, 0)


@given(
    pairs=st.lists(st.tuples(TEXTS, VALUES), max_size=6),
    ascii_only=st.booleans(),
    space=st.sampled_from(["", " ", "\n\t"]),
)
def test_fields_and_their_counts(find, pairs, ascii_only, space):
    """Names may occur twice."""

    def dumped(value):
        return json.dumps(value, ensure_ascii=ascii_only, separators=(f"{space},{space}", f"{space}:{space}"))

    items = [(dumped(name), dumped(value)) for name, value in pairs]
    body = (
        space + "{" + space + f",{space}".join(f"{name}{space}:{space}{value}" for name, value in items) + space + "}"
    )
    data = body.encode()
    found = find(data)
    assert [field.name for field in found] == [name[1:-1].encode() for name, _ in items]
    assert [data[field.start :][: field.num_bytes].strip() for field in found] == [v.encode() for _, v in items]
    assert [field[3:] for field in found] == [counts(value) for _, value in pairs]


@given(st.binary(max_size=60) | st.text('{}[]",:\\ a0', max_size=60).map(lambda text: f'{{"a":{text}'.encode()))
def test_no_text_confuses_it(find, data):
    for field in find(data) or ():
        assert 0 <= field.start <= field.start + field.num_bytes <= len(data)


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"[]", b'"a"', b'["a"]', b"{a}", b"{,}", b"\xef\xbb\xbf{}"])
def test_a_text_without_fields(find, data):
    assert find(data) == []


def test_a_value_without_end_extends_to_the_end_of_the_text(find):
    assert find(b'{"a":["b"') == [Field(b"a", 5, 4, 1, 1, 0)]
    assert find(b'{"a":"b') == [Field(b"a", 5, 2, 1, 0, 0)]
    assert find(b'{"a') == [Field(b"a", 3, 0, 0, 0, 0)]


def test_too_many_fields(find):
    def body(num):
        return ("{" + ",".join(['"a":1'] * num) + "}").encode()

    assert len(find(body(MAX_FIELDS))) == MAX_FIELDS
    assert find(body(MAX_FIELDS + 1)) is None
