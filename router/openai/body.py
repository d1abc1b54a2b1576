"""Decodes JSON bodies to their types, within limits, and reports what is wrong with one in OpenAI's terms.

An error names the field as `param`, lists the allowed values if there are few, and never repeats what the client sent.
"""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any, TypeVar

import msgspec

from baton.errors import ContextLengthExceeded, InvalidRequest

Body = TypeVar("Body", bound=msgspec.Struct)

_MAX_SAID = 1000
_SMALL_BYTES = 2**14  # bodies up to this size may be decoded twice
_GOT_FLOAT = re.compile(r"Expected `int\b[^`]*`, got `float`")
_SAID = re.compile(r"(?P<what>.*?)(?: - at `(?:key` in `)?\$(?P<path>.*)`)?", re.DOTALL)
_FIELD = re.compile(r"Object (contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)
_SANE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_INDEX = re.compile(r"\[\d+\]$")
_ANY_INDEX = re.compile(r"\[\d+\]")
_OTHER_PARTS = frozenset({"image_url", "input_audio", "file", "file_data", "file_id", "file_url", "video_url"})
_ONLY_TEXT = "Only text parts are supported"
_ONLY_NEUTRAL = re.compile(r"Expected `(null`,|(array|str)` of length <= 0|(array|str) \| null`)")
_STEP = re.compile(r"\[[^\]]*\]|[^.\[\]]+")
_Schema = dict[str, Any]


def unsupported(param: str) -> InvalidRequest:
    """Return the error for a field that is known but not supported."""
    return coded(InvalidRequest("This is not supported: leave it out", param=param), "unsupported_parameter")


def too_long(max_model_len: int, what: str, param: str) -> ContextLengthExceeded:
    """Return the error for too many tokens, in OpenAI's words, by which LiteLLM knows to fall back to another model."""
    return ContextLengthExceeded(
        f"This model's maximum context length is {max_model_len} tokens, however {what}", param=param
    )


def coded(error: InvalidRequest, code: str) -> InvalidRequest:
    """Return the error with another of OpenAI's codes."""
    error.code = code  # type: ignore[misc]
    return error


def decode(decoder: "msgspec.json.Decoder[Body]", data: bytes, *, whole: bool = True) -> Body:
    """Decode a body. Raises InvalidRequest, whose message repeats nothing that the client sent.

    Unless `data` is the `whole` body, errors do not mention positions in it.
    """
    try:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError as error:
            if len(data) > _SMALL_BYTES or not _GOT_FLOAT.match(str(error)):
                raise
            return decoder.decode(msgspec.json.encode(_with_integers(msgspec.json.decode(data))))
    except msgspec.ValidationError as error:
        raise _invalid(str(error), decoder.type) from None
    except UnicodeDecodeError:
        raise InvalidRequest("The body is not valid JSON: a text in it is not UTF-8") from None
    except msgspec.DecodeError as error:
        why = str(error).removeprefix("JSON is malformed: ")  # what, and at which byte: nothing of the body
        why = why if whole else why.partition(" (byte")[0]
        raise InvalidRequest(f"The body is not valid JSON: {why}") from None
    except RecursionError:
        raise InvalidRequest("The body is nested too deeply") from None


def _with_integers(value: Any) -> Any:
    """Convert floats with integral values to integers: some clients have a single number type and send 1.0 for 1."""
    if isinstance(value, dict):
        return {name: _with_integers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _invalid(said: str, kind: Any) -> InvalidRequest:
    """Convert msgspec's message about a body of type `kind`, leaving out what it repeats of the body."""
    match = _SAID.fullmatch(said if len(said) <= _MAX_SAID else said[:200] + said[-800:])  # it repeats a long name
    what, path = (match["what"], match["path"] or "") if match else (said, "")
    param = path.removeprefix(".")
    if field := _FIELD.fullmatch(what):
        if _SANE_NAME.fullmatch(field["name"]):  # others are not repeated: they are no misspelt field names
            param = f"{param}.{field['name']}".lstrip(".")
        if field["name"] in _OTHER_PARTS:
            return coded(InvalidRequest(_ONLY_TEXT, param=param or None), "unsupported_parameter")
        if what.startswith("Object contains"):
            return coded(InvalidRequest("Unknown field", param=param or None), "unknown_parameter")
        return coded(InvalidRequest("Missing field", param=param), "missing_required_parameter")
    if _ONLY_NEUTRAL.match(what):
        return unsupported(_INDEX.sub("", param))
    if what.startswith("Invalid enum value"):
        what = _ONLY_TEXT if param.endswith("].type") and "content[" in param else _one_of(kind, param)
    elif what.startswith("Invalid value"):
        what = _one_of(kind, param)
    error = InvalidRequest(what, param=param or None)
    return coded(error, "invalid_type") if what.startswith("Expected `") and ", got `" in what else error


def _one_of(kind: Any, param: str) -> str:
    allowed = _choices(kind, _ANY_INDEX.sub("[]", param))
    return f"Expected one of {', '.join(allowed)}" if allowed else "Invalid value"


@cache
def _choices(kind: Any, path: str) -> tuple[str, ...]:
    """Return the values allowed at `path` (such as `messages[].role`) of a body; none if it is not an enumeration."""
    root = msgspec.json.schema(kind)
    places = [root]
    for step in _STEP.findall(path):
        places = [below for place in places for below in _below(root, place, step)]
    allowed = [value for place in places for form in _forms(root, place) for value in form.get("enum", ())]
    return tuple(dict.fromkeys(str(value) for value in allowed if value is not None))


def _forms(root: _Schema, place: _Schema) -> Iterator[_Schema]:
    """Yield the alternatives of a schema: itself, what it refers to, and each of its `anyOf`."""
    if "$ref" in place:
        yield from _forms(root, root["$defs"][place["$ref"].rpartition("/")[2]])
        return
    yield place
    for form in place.get("anyOf", ()):
        yield from _forms(root, form)


def _below(root: _Schema, place: _Schema, step: str) -> Iterator[_Schema]:
    """Yield the schemas one `step` below: of a field, or of the items of an array or mapping."""
    for form in _forms(root, place):
        if step.startswith("["):
            yield from (form[name] for name in ("items", "additionalProperties") if isinstance(form.get(name), dict))
        elif step in form.get("properties", ()):
            yield form["properties"][step]
