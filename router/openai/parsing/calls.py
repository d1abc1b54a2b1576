"""Parsers of tool calls in the formats of Hermes and Qwen, of Llama 3, and of Mistral.

What looks like a call but is none is content, unchanged. Whitespace between content and calls is dropped.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

from router.openai.parsing.call_object import CallObject
from router.openai.parsing.markers import Until
from router.openai.parsing.parts import Content, Part

_SPACE = " \t\r\n"


class CallParser(ABC):
    """The base of these parsers, a state machine.

    Each state is a method that consumes text, adds parts, and returns the text for the next state. A marker leads from
    `_in_text` to `_before_call`, an object to `_in_call`, and its end to `_after_call`.
    """

    passes = False
    _MARKER = ""

    def __init__(self, names: Collection[str] | None) -> None:
        """`names`: only these can be called, and any other call is content; None: any name."""
        self._names = None if names is None else frozenset(names)
        self._parts: list[Part] = []
        self._space = ""  # whitespace after content: shown if more content follows
        self._called = False  # whether the last part was a call's
        self._text = Until(self._MARKER)
        self._call = CallObject()
        self._held = ""  # markup around a call, which is content if there turns out to be no call
        self._state: Callable[[str], str] = self._in_text

    def push(self, text: str) -> list[Part]:
        """See `Parser`."""
        while text:
            text = self._state(text)
        return self._take_parts()

    def finish(self) -> list[Part]:
        """See `Parser`. What was held back is content."""
        self._content(self._rest())
        if self._space:
            self._parts.append(Content(self._space))
        return self._take_parts()

    def _in_text(self, text: str) -> str:
        before, marker, after = self._text.push(text)
        self._content(before)
        if marker:
            self._state, self._held = self._before_call, marker
        return after

    @abstractmethod
    def _before_call(self, text: str) -> str: ...

    def _in_call(self, text: str) -> str:
        call = self._call
        parts, rest = call.push(text)
        if parts:
            self._called, self._space = True, ""
        self._parts += parts
        if call.broken and not call.begun:
            self._content(self._held + call.raw)
            self._state, self._held = self._in_text, ""
        elif call.ended or call.broken:
            self._state, self._held = self._after_call, ""
        return rest

    @abstractmethod
    def _after_call(self, text: str) -> str: ...

    def _rest(self) -> str:
        """Return the content among what is held back at the end of the output."""
        if self._state == self._in_text:
            return self._text.finish()
        if self._state == self._in_call:
            return "" if self._call.begun else self._held + self._call.raw
        return self._held

    def _begin_call(self) -> None:
        self._state, self._call = self._in_call, CallObject(self._names)

    def _take_parts(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    def _content(self, text: str) -> None:
        if self._called:
            text = text.lstrip(_SPACE)
        text = self._space + text
        shown = text.rstrip(_SPACE)
        self._space = text[len(shown) :]
        if shown:
            self._parts.append(Content(shown))
            self._called = False


class HermesParser(CallParser):
    """Parses `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of times, between texts."""

    _MARKER, _CLOSING = "<tool_call>", "</tool_call>"

    def __init__(self, names: Collection[str] | None) -> None:
        super().__init__(names)
        self._tail = Until(self._CLOSING, self._MARKER)  # after an object, up to the end of the element

    def _before_call(self, text: str) -> str:
        self._begin_call()
        return text

    def _after_call(self, text: str) -> str:
        before, marker, after = self._tail.push(text)
        self._held += before
        if marker:
            self._state, self._held = self._in_text, ""
        return marker + after if marker == self._MARKER else after

    def _rest(self) -> str:
        if self._state != self._after_call:
            return super()._rest()
        rest = self._held + self._tail.finish()
        return rest if self._call.ended and not self._CLOSING.startswith(rest.strip(_SPACE)) else ""


class LlamaParser(CallParser):
    """Parses `{"name": …, "parameters": {…}}` at the start or after `<|python_tag|>`, then more after `;` or space."""

    _MARKER = "<|python_tag|>"

    def __init__(self, names: Collection[str] | None) -> None:
        super().__init__(names)
        self._state = self._before_call

    def _before_call(self, text: str) -> str:
        """The state at the start of the output, after a marker, and after a call."""
        text = self._held + text
        self._held = ""
        bare = text.lstrip(_SPACE + (";," if self._called else ""))
        tagged = bare.startswith(self._MARKER)
        value = bare[len(self._MARKER) :].lstrip(_SPACE) if tagged else bare
        if not value:
            self._held = text
            return ""
        if value.startswith("{"):
            self._held = text[: len(text) - len(value)]
            self._begin_call()
            return value
        self._state = self._in_text
        if not tagged:
            return text
        end = len(text) - len(bare) + len(self._MARKER)
        self._content(text[:end])
        return text[end:]

    _after_call = _before_call

    def _rest(self) -> str:
        rest = super()._rest()
        is_between = self._called and not rest.strip(_SPACE + ";,")
        return "" if is_between else rest


class MistralParser(CallParser):
    """Parses `[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]` after any text or, if `bare`, only the list."""

    _MARKER = "[TOOL_CALLS]"

    def __init__(self, names: Collection[str] | None, *, bare: bool = False) -> None:
        super().__init__(names)
        if bare:
            self._state = self._before_call

    def _before_call(self, text: str) -> str:
        """Consume one character at a time, up to the first object of the list."""
        char, rest = text[0], text[1:]
        if char == "{":
            self._begin_call()
            return text
        if char in _SPACE or (char == "[" and not self._held.removeprefix(self._MARKER).strip(_SPACE)):
            self._held += char
            return rest
        self._content(self._held)
        self._state, self._held = self._in_text, ""
        return text

    def _after_call(self, text: str) -> str:
        """Consume one character at a time, up to the next object or the end of the list."""
        char, rest = text[0], text[1:]
        if self._call.broken:
            self._state = self._in_text
            return text
        if char == "{" and "," in self._held:
            self._begin_call()
            return text
        if char in _SPACE + ",":
            self._held += char
            return rest
        self._state, self._held = self._in_text, ""
        return rest if char == "]" else text

    def _rest(self) -> str:
        return "" if self._state == self._after_call else super()._rest()
