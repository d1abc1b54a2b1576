"""Parses a tool call from a stream: the JSON object `{"name": "f", "arguments": {…}}`, in any order of keys.

Other keys are ignored. The call is reported as soon as its name is known to be a tool's and its arguments begin; these
are passed on as they come, in the model's own spelling. Until then the object may turn out to be something else, so its
text is kept.
"""

from collections.abc import Collection
from typing import Any

import msgspec

from router.openai.parsing.json_value import JSONValue
from router.openai.parsing.parts import CallArguments, CallBegin, CallEnd, Part

_ARGUMENTS = ("arguments", "parameters")
_SPACE = " \t\r\n"


class CallObject:
    """The parser of one call. The first character pushed must be the object's brace."""

    def __init__(self, names: Collection[str] | None = None) -> None:
        """`names`: only an object with one of these names is a call; None accepts any name."""
        self.begun = False  # a CallBegin was returned
        self.ended = False  # the object is complete
        self.broken = False  # it is not a call, or not JSON; the rest was not consumed
        self.raw = ""  # all text consumed before a CallBegin
        self._names = names
        self._next = "{"  # what is expected next: one of '{', 'k'ey, ':', 'v'alue, ','
        self._value: JSONValue | None = None
        self._text: list[str] = []  # of the key or value being read
        self._key = ""
        self._name: str | None = None
        self._streams = False  # whether the arguments go out as they come
        self._held: str | None = None  # arguments that came before the name

    def push(self, text: str) -> tuple[list[Part], str]:
        """Return the parts that are certain now, and the text after the object, or from where it is broken."""
        parts: list[Part] = []
        position = 0
        while position < len(text) and not (self.ended or self.broken):
            taken = self._take(text, position, parts)
            if not self.begun:
                self.raw += text[position:taken]
            position = taken
        return parts, text[position:]

    def _take(self, text: str, position: int, parts: list[Part]) -> int:
        if self._value is not None:
            return self._take_value(self._value, text, position, parts)
        char = text[position]
        if char in _SPACE:
            return position + 1
        if self._next in "kv" and char != "}":
            self._value, self._text = JSONValue(), []
            self.broken = self._next == "k" and char != '"'
            self._streams = self._next == "v" and self._key in _ARGUMENTS and self._known and char == "{"
            if self._streams:
                self._begin(parts)
            return position
        return self._take_mark(char, position, parts)

    @property
    def _known(self) -> bool:
        return self._name is not None and not self.begun

    def _take_mark(self, char: str, position: int, parts: list[Part]) -> int:
        if char == "}" and self._next in "k,":
            self._end(parts)
        elif char == self._next:
            self._next = {"{": "k", ":": "v", ",": "k"}[char]
        else:
            self.broken = True
        return position if self.broken else position + 1

    def _take_value(self, value: JSONValue, text: str, position: int, parts: list[Part]) -> int:
        num_taken = value.push(text[position:] if position else text)
        piece = text[position : position + num_taken]
        if self._streams:
            if piece:
                parts.append(CallArguments(piece))
            if value.ended:
                parts.append(CallEnd())
        else:
            self._text.append(piece)
        self.broken = value.broken
        if value.ended:
            self._value = None
            self._close_value("".join(self._text))
        return position + num_taken

    def _close_value(self, text: str) -> None:
        if self._next == "k":
            key = _decoded(text)
            self._key, self._next, self.broken = str(key), ":", not isinstance(key, str)
            return
        self._next = ","
        if self._key == "name" and self._name is None:
            self._name = name = _decoded(text)
            accepted = isinstance(name, str) and name and (self._names is None or name in self._names)
            self.broken = not accepted
        elif self._key in _ARGUMENTS:
            self._held = _arguments(text)

    def _begin(self, parts: list[Part]) -> None:
        self.begun = True
        parts.append(CallBegin(self._name or ""))

    def _end(self, parts: list[Part]) -> None:
        if self._known:
            self._begin(parts)
            parts += [CallArguments("{}" if self._held is None else self._held), CallEnd()]
        self.ended = self.begun
        self.broken = not self.begun


def _arguments(text: str) -> str:
    """Return the arguments' JSON. Some models write the object as a string, which is unpacked."""
    value = _decoded(text) if text.startswith('"') else None
    if isinstance(value, str):
        return value
    return "{}" if text == "null" else text


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return None
