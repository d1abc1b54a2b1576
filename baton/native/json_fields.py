"""Finds the fields of a JSON object, and counts the values in each, without decoding it: in a millisecond per megabyte.

Only the compiled version (`build`) can do that. It releases the GIL, so it does not hold up an event loop if it is
called in a thread.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import NamedTuple

from baton.native import build

MAX_FIELDS = 128


class Field(NamedTuple):
    """A field, and what its value has outside of strings. Names of nested fields count as strings, too."""

    name: bytes  # as it is written, with its escapes
    start: int  # where the value begins
    num_bytes: int  # of the value
    num_strings: int
    num_containers: int  # objects and lists
    num_commas: int


Find = Callable[[bytes], "Sequence[Field] | None"]
"""A text -> its fields in order, also those that occur twice. None if there are more than MAX_FIELDS.

If the text is no object, there are none; if it is not valid JSON, the last one extends up to its end."""


class _Field(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("name", "name_end", "start", "end", "num_strings", "num_containers", "num_commas")
    ]


def load() -> Find | None:
    """Return the compiled version; None if it is not installed."""
    try:
        compiled = ctypes.CDLL(str(build.library(build.JSON_FIELDS))).baton_json_fields
    except OSError:
        return None
    size = ctypes.c_size_t
    compiled.argtypes = [ctypes.c_char_p, size, ctypes.POINTER(_Field), size]
    compiled.restype = size

    def find(text: bytes) -> Sequence[Field] | None:
        fields = (_Field * MAX_FIELDS)()
        num = compiled(text, len(text), fields, MAX_FIELDS)
        if num > MAX_FIELDS:
            return None
        return [
            Field(
                text[field.name : field.name_end],
                field.start,
                field.end - field.start,
                field.num_strings,
                field.num_containers,
                field.num_commas,
            )
            for field in fields[:num]
        ]

    return find
