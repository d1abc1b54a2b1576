"""Finds the end of a JSON value in a stream of text: counts brackets and skips strings, without decoding anything."""

import re

_IN_STRING = re.compile(r'[^"\\]*')
_BETWEEN = re.compile(r"[\s0-9a-zA-Z+\-.:,]*")
_SCALAR = re.compile(r"[0-9a-zA-Z+\-.]*")
_CLOSER = {"{": "}", "[": "]"}


class JSONValue:
    """One value. Its first character must not be whitespace."""

    def __init__(self) -> None:
        self.ended = False
        self.broken = False  # it is not JSON, from the first character that was not consumed
        self._closers: list[str] = []
        self._in_string = False
        self._escaped = False
        self._scalar = False

    def push(self, text: str) -> int:
        """Return how many characters of `text` belong to the value: all, unless it has `ended` or is `broken`."""
        position = 0
        while position < len(text) and not (self.ended or self.broken):
            step = self._step_in_string if self._in_string else self._step
            position = step(text, position)
        return position

    def _step_in_string(self, text: str, position: int) -> int:
        if self._escaped:
            self._escaped = False
            return position + 1
        match = _IN_STRING.match(text, position)
        position = match.end() if match else position
        if position == len(text):
            return position
        if text[position] == "\\":
            self._escaped = True
        else:
            self._in_string = False
            self.ended = not self._closers
        return position + 1

    def _step(self, text: str, position: int) -> int:
        char = text[position]
        if not self._closers and (self._scalar or char not in '{["'):
            return self._step_in_scalar(text, position)
        if char == '"':
            self._in_string = True
        elif char in _CLOSER:
            self._closers.append(_CLOSER[char])
        elif char == self._closers[-1]:
            self._closers.pop()
            self.ended = not self._closers
        else:
            match = _BETWEEN.match(text, position)
            end = match.end() if match else position
            self.broken = end == position
            return end
        return position + 1

    def _step_in_scalar(self, text: str, position: int) -> int:
        match = _SCALAR.match(text, position)
        end = match.end() if match else position
        self.broken = end == position and not self._scalar
        self._scalar = True
        self.ended = end < len(text) and not self.broken
        return end
