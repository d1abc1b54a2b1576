"""JSON schemas whose objects have only the properties that the schema names, unless it says otherwise.

By default, a JSON schema allows any others. vLLM and SGLang (XGrammar's `strict_mode`) do not, and clients rely on it:
pydantic's schemas leave `additionalProperties` out, and small models would write properties until `max_tokens`.
"""

import copy
from collections.abc import Iterator
from typing import Any

_SCHEMAS = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf")  # a schema or a list of them
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # schemas by name
_COMBINED = ("$ref", "anyOf", "oneOf")


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy with `additionalProperties: false` in every object that lists its properties and lacks it.

    If the schema combines descriptions of one object, each of which would exclude the others' properties, the copy is
    the same as the schema.
    """
    schema = copy.deepcopy(schema)
    places = list(_places(schema))
    if not any(map(_combines, places)):
        for place in places:
            if _is_open(place):
                place["additionalProperties"] = False
    return schema


def _places(node: Any) -> Iterator[dict[str, Any]]:
    """Yield all schemas in a schema or in a list of them."""
    if isinstance(node, list):
        for item in node:
            yield from _places(item)
    elif isinstance(node, dict):
        yield node
        for name in _SCHEMAS:
            yield from _places(node.get(name))
        for name in _NAMED:
            named = node.get(name)
            yield from _places(list(named.values()) if isinstance(named, dict) else None)


def _combines(place: dict[str, Any]) -> bool:
    return "allOf" in place or ("properties" in place and any(name in place for name in _COMBINED))


def _is_open(place: dict[str, Any]) -> bool:
    """Whether an object lists its properties and does not say that it has others."""
    listed, required = place.get("properties"), place.get("required", [])
    if not isinstance(listed, dict) or not isinstance(required, list):
        return False
    return not ("additionalProperties" in place or "minProperties" in place) and all(
        name in listed for name in required
    )
