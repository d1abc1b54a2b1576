"""Which values a field of a body may have, where there are few: what msgspec does not say of an invalid one."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec

_STEP = re.compile(r"\[[^\]]*\]|[^.\[\]]+")
_Schema = dict[str, Any]


@cache
def choices(kind: Any, path: str) -> tuple[str, ...]:
    """All that are allowed at `path` of a body of that type, as `messages[...].role`; none where it is no choice."""
    root = msgspec.json.schema(kind)
    places = [root]
    for step in _STEP.findall(path):
        places = [below for place in places for below in _below(root, place, step)]
    allowed = [value for place in places for form in _forms(root, place) for value in form.get("enum", ())]
    return tuple(dict.fromkeys(str(value) for value in allowed if value is not None))


def _forms(root: _Schema, place: _Schema) -> Iterator[_Schema]:
    """What a schema may stand for."""
    if "$ref" in place:
        yield from _forms(root, root["$defs"][place["$ref"].rpartition("/")[2]])
        return
    yield place
    for form in place.get("anyOf", ()):
        yield from _forms(root, form)


def _below(root: _Schema, place: _Schema, step: str) -> Iterator[_Schema]:
    """What `step` leads to: a field, or any item of an array or a mapping."""
    for form in _forms(root, place):
        if step.startswith("["):
            yield from (form[name] for name in ("items", "additionalProperties") if isinstance(form.get(name), dict))
        elif step in form.get("properties", ()):
            yield form["properties"][step]
