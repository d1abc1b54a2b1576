"""Which objects of a schema are closed, and which schemas stay as they are."""

import pytest

from baton.closed_schema import closed

A = {"type": "object", "properties": {"a": {"type": "boolean"}}}
CLOSED = {**A, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (A, CLOSED),
        ({"type": "array", "items": A}, {"type": "array", "items": CLOSED}),
        ({"prefixItems": [A, True]}, {"prefixItems": [CLOSED, True]}),
        ({"anyOf": [A, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"$defs": {"x": A}, "$ref": "#/$defs/x"}, {"$defs": {"x": CLOSED}, "$ref": "#/$defs/x"}),
        ({"additionalProperties": A}, {"additionalProperties": CLOSED}),
        ({"properties": {"properties": A}}, {"properties": {"properties": CLOSED}, "additionalProperties": False}),
        ({**A, "required": ["a"]}, {**CLOSED, "required": ["a"]}),
    ],
)
def test_objects_that_list_their_properties_are_closed(schema, expected):
    assert closed(schema) == expected
    assert "additionalProperties" not in A  # the schema itself is shown to the model as it is


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {**A, "additionalProperties": True},
        {**A, "additionalProperties": {"type": "string"}},
        {**A, "required": ["b"]},
        {**A, "required": "a"},
        {**A, "minProperties": 2},
        {"allOf": [A, {"properties": {"b": {}}}]},
        {**A, "anyOf": [{"required": ["a"]}, {"properties": {"b": {}}}]},
        {"$defs": {"x": A}, "$ref": "#/$defs/x", "properties": {"b": {}}},
        {"const": A},
        {"enum": [A]},
        {"properties": None},
    ],
)
def test_what_says_otherwise_or_combines_descriptions_stays(schema):
    assert closed(schema) == schema
