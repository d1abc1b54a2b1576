"""Refuses bodies with fields larger than any valid one, before they are decoded.

Decoding pauses the event loop, and so all streams: a list of a million strings takes 100 ms, and the limits of the
fields' types are only checked at its end. What is checked here takes longer than 0.2 ms only for a body of more than
LARGE_BYTES, and is then done in a thread, without the GIL.
"""

import re
from collections.abc import Iterable, Sequence
from operator import gt
from typing import NamedTuple

from baton.errors import InvalidRequest
from baton.native import json_fields
from baton.native.json_fields import Field
from router.http.turns import LARGE_BYTES
from router.openai.body import too_long
from router.openai.schema import MAX_CHOICES

MIN_BYTES = 2**14  # smaller bodies are decoded in less than a millisecond, whatever they contain
_MAX_TEXT_BYTES = 2**20  # of a prompt; more if that is less than _BYTES_PER_TOKEN for each token of the context
_BYTES_PER_TOKEN = 64
_MAX_ARGUMENT_VALUES = 2**14
_MOST_MARKS = {b"{": 2**17, b"[": 2**17, b'"': 2**19, b",": 2**20}  # without the compiled version: also within strings
_SANE_NAME = re.compile(rb"[a-z_0-9]{1,64}")
_ONE_TEXT = re.compile(rb'"|\[[ \n\r\t]*\{')
_PROMPTS = (b"prompt", b"input", b"tokens")  # may be lists of token ids
_TEXTS = (b"messages", b"prompt", b"input", b"instructions")


class Most(NamedTuple):
    """Limits on the JSON of a value."""

    num_bytes: int
    num_strings: int
    num_containers: int
    num_commas: int


_ALL = Most(2**23, 2**15, 2**14, 2**20)  # the whole body
_NARROW = Most(2**18, 2**11, 2**9, 2**11)
_FORM = Most(2**19, 2**13, 2**12, 2**14)  # a schema, a list of choices: larger than MAX_GRAMMAR_BYTES by its escapes
_TEXT_LIST = Most(2**23, 2**11, 2**11, 2**12)
_WIDE = {
    b"messages": Most(2**23, 2**15, 2**14, 2**16),
    b"input": Most(2**23, 2**15, 2**14, 300_000),  # OpenAI's limit on the tokens of embedding inputs
    b"prompt": Most(2**23, 2**8, 2**8, 2**20),  # MAX_CHOICES texts or lists of ids
    b"tokens": Most(2**23, 2**8, 2**8, 2**20),
    b"instructions": Most(2**23, 1, 0, 0),
    b"text_1": _TEXT_LIST,
    b"text_2": _TEXT_LIST,
    b"tools": Most(2**20, 2**14, 2**12, 2**14),
} | dict.fromkeys(
    (b"response_format", b"text", b"structured_outputs", b"guided_json", b"guided_regex", b"guided_choice",
     b"guided_grammar", b"regex", b"ebnf"), _FORM)  # fmt: skip
_find = json_fields.load()


def check(data: bytes, max_model_len: int = 0) -> Sequence[Field] | None:
    """Raise InvalidRequest if a field is too large, or ContextLengthExceeded for a prompt; 0: no limit on that.

    Invalid JSON is left to the decoder. Returns the fields, or None if there was no need to find them.
    """
    if len(data) < MIN_BYTES:
        return None
    if _find is None:
        if len(data) > LARGE_BYTES and any(data.count(mark) > most for mark, most in _MOST_MARKS.items()):
            raise InvalidRequest("The body has too many values")
        return None
    fields = _find(data)
    if fields is None:
        raise InvalidRequest("The body has too many fields")
    for field in fields:
        _check_field(field, data, max_model_len)
    num_other_bytes = len(data) - sum(field.num_bytes for field in fields)
    if fields and num_other_bytes > LARGE_BYTES:
        raise InvalidRequest("The body has too long names, or too much space between its fields")
    if any(map(gt, _sums(fields), _ALL[1:])):
        raise InvalidRequest("The body has too many values")
    return fields


def check_arguments(calls: Iterable[str], param: str) -> None:
    """Raise InvalidRequest if the arguments of a conversation's calls, which are JSON in strings, have too many values.

    Templates get them decoded.
    """
    num_values = 0
    for arguments in calls:
        at_most = sum(map(arguments.count, "{[,"))  # including those in strings
        if num_values + at_most > _MAX_ARGUMENT_VALUES and _find is not None:
            fields = _find(arguments.encode(errors="replace")) or ()
            at_most = sum(field.num_containers + field.num_commas + 1 for field in fields)
        num_values += at_most
    if num_values > _MAX_ARGUMENT_VALUES:
        raise InvalidRequest("The arguments of its calls have too many values", param=param)


def _check_field(field: Field, data: bytes, max_model_len: int) -> None:
    most = _WIDE.get(field.name, _NARROW)
    param = field.name.decode() if _SANE_NAME.fullmatch(field.name) else ""
    if max_model_len and _has_too_many_ids(field, max_model_len):
        raise too_long(max_model_len, f"there are {field.num_commas + 1} token ids", param)
    if max_model_len and _is_too_long_text(data, field, max_model_len):
        raise too_long(max_model_len, "the text is longer", param)
    if field.num_bytes > most.num_bytes:
        raise InvalidRequest(f"Expected at most {most.num_bytes} bytes", param=param or None)
    if any(map(gt, _counts(field), most[1:])):
        raise InvalidRequest("This has too many values", param=param or None)


def _has_too_many_ids(field: Field, max_model_len: int) -> bool:
    if field.name not in _PROMPTS or field.num_strings:
        return False
    if field.num_containers == 1:
        return field.num_commas >= max_model_len
    return field.name == b"prompt" and field.num_commas >= MAX_CHOICES * max_model_len  # one of the prompts is too long


def _is_too_long_text(data: bytes, field: Field, max_model_len: int) -> bool:
    """Whether it is a text or a conversation, not a list of prompts, each of which may be as long as the context."""
    if field.num_bytes <= max(_MAX_TEXT_BYTES, _BYTES_PER_TOKEN * max_model_len) or field.name not in _TEXTS:
        return False
    return _ONE_TEXT.match(data, field.start) is not None


def _counts(field: Field) -> tuple[int, int, int]:
    return field.num_strings, field.num_containers, field.num_commas


def _sums(fields: Iterable[Field]) -> Iterable[int]:
    return map(sum, zip(*map(_counts, fields), strict=True))
