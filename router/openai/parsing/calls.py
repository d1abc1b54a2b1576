"""Tool calls in an output, in the formats of Hermes and Qwen, of Llama 3, and of Mistral.

What looks like a call and is none is content, as it stands. Whitespace between content and calls is markup.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection

from router.openai.parsing.call_object import CallObject
from router.openai.parsing.markers import Until, may_begin
from router.openai.parsing.parts import CallBegin, Content, Part

_SPACE = " \t\r\n"


class CallParser(ABC):
    """Each state is a method that takes text, adds parts, and returns what the next state is to look at."""

    passes = False

    def __init__(self, names: Collection[str]) -> None:
        """`names` are those of the tools."""
        self._names = frozenset(names)
        self._parts: list[Part] = []
        self._space = ""  # after content: shown if more content follows
        self._called = False  # the last thing that was told is a call
        self._call = CallObject()

    def push(self, text: str) -> list[Part]:
        """What is certain now."""
        while text:
            text = self._step(text)
        return self._told()

    def finish(self) -> list[Part]:
        """What was held back is content."""
        self._content(self._rest())
        if self._space and not self._called:
            self._parts.append(Content(self._space))
        return self._told()

    @abstractmethod
    def _step(self, text: str) -> str: ...

    @abstractmethod
    def _rest(self) -> str: ...

    def _told(self) -> list[Part]:
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

    def _push_call(self, text: str) -> str:
        parts, rest = self._call.push(text)
        if any(isinstance(part, CallBegin) for part in parts):
            self._called, self._space = True, ""
        self._parts += parts
        return rest


class HermesParser(CallParser):
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, any number of times, between texts."""

    _OPENING, _CLOSING = "<tool_call>", "</tool_call>"

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(names)
        self._text = Until(self._OPENING)
        self._tail: Until | None = None  # after an object, up to the end of the element
        self._skipped = ""
        self._in_call = False

    def _step(self, text: str) -> str:
        if self._tail is not None:
            return self._step_in_tail(self._tail, text)
        return self._step_in_call(text) if self._in_call else self._step_in_text(text)

    def _step_in_text(self, text: str) -> str:
        before, marker, after = self._text.push(text)
        self._content(before)
        if marker:
            self._in_call, self._call, self._skipped = True, CallObject(), ""
        return after

    def _step_in_call(self, text: str) -> str:
        rest = self._push_call(text)
        if self._call.ended or (self._call.broken and self._call.begun):
            self._tail = Until(self._CLOSING, self._OPENING)
        elif self._call.broken:
            self._in_call = False
            self._content(self._OPENING + self._call.raw)
        return rest

    def _step_in_tail(self, tail: Until, text: str) -> str:
        before, marker, after = tail.push(text)
        self._skipped += before
        if marker:
            self._tail, self._in_call = None, False
        return self._OPENING + after if marker == self._OPENING else after

    def _rest(self) -> str:
        if self._tail is not None:
            rest = self._skipped + self._tail.finish()
            return rest if self._call.ended and not may_begin(rest.strip(_SPACE), [self._CLOSING]) else ""
        if self._in_call:
            return "" if self._call.begun else self._OPENING + self._call.raw
        return self._text.finish()


class LlamaParser(CallParser):
    """`{"name": …, "parameters": {…}}` from the start on, or after `<|python_tag|>`; more calls after `;` or space."""

    _TAG = "<|python_tag|>"

    def __init__(self, names: Collection[str]) -> None:
        super().__init__(names)
        self._text = Until(self._TAG)
        self._state: Callable[[str], str] = self._at_start
        self._held = ""  # of what may be a call

    def _step(self, text: str) -> str:
        return self._state(text)

    def _at_start(self, text: str) -> str:
        """Before a call, or anything else."""
        text = self._held + text
        self._held = ""
        bare = text.lstrip(_SPACE + (";," if self._called else ""))
        tagged = bare.startswith(self._TAG)
        value = bare[len(self._TAG) :].lstrip(_SPACE) if tagged else bare
        if not value or (not tagged and may_begin(bare, [self._TAG])):
            self._held = text
            return ""
        if value.startswith("{"):
            self._held = text[: len(text) - len(value)]
            self._state, self._call = self._in_call, CallObject(self._names)
            return value
        self._state = self._in_text
        if not tagged:
            return text
        end = len(text) - len(bare) + len(self._TAG)
        self._content(text[:end])
        return text[end:]

    def _in_call(self, text: str) -> str:
        rest = self._push_call(text)
        if self._call.ended or (self._call.broken and self._call.begun):
            self._state, self._held = self._at_start, ""
        elif self._call.broken:
            self._content(self._held + self._call.raw)
            self._state, self._held = self._in_text, ""
        return rest

    def _in_text(self, text: str) -> str:
        before, marker, after = self._text.push(text)
        self._content(before)
        if marker:
            self._state = self._at_start
        return marker + after

    def _rest(self) -> str:
        if self._state == self._in_call:
            return "" if self._call.begun else self._held + self._call.raw
        if self._state == self._at_start:
            return "" if self._called and not self._held.strip(_SPACE + ";,") else self._held
        return self._text.finish()


class MistralParser(CallParser):
    """`[TOOL_CALLS] [{"name": …, "arguments": {…}}, …]` after any text; or, where `bare`, nothing but the list."""

    _MARKER = "[TOOL_CALLS]"

    def __init__(self, names: Collection[str], *, bare: bool = False) -> None:
        super().__init__(names)
        self._text = Until(self._MARKER)
        self._state: Callable[[str], str] = self._before_list if bare else self._in_text
        self._held = ""  # of what may be a call

    def _step(self, text: str) -> str:
        return self._state(text)

    def _in_text(self, text: str) -> str:
        before, marker, after = self._text.push(text)
        self._content(before)
        if marker:
            self._state, self._held = self._before_list, marker
        return after

    def _before_list(self, text: str) -> str:
        """One character at a time: a bracket, then an object."""
        char, rest = text[0], text[1:]
        if char == "{":
            self._state, self._call = self._in_call, CallObject()
            return text
        if char in _SPACE or (char == "[" and not self._held.removeprefix(self._MARKER).strip(_SPACE)):
            self._held += char
            return rest
        self._content(self._held)
        self._state, self._held = self._in_text, ""
        return text

    def _in_call(self, text: str) -> str:
        rest = self._push_call(text)
        if self._call.ended:
            self._state, self._held = self._after_call, ""
        elif self._call.broken:
            if not self._call.begun:
                self._content(self._held + self._call.raw)
            self._state, self._held = self._in_text, ""
        return rest

    def _after_call(self, text: str) -> str:
        """The list goes on, or ends."""
        char, rest = text[0], text[1:]
        if char == "]":
            self._state, self._held = self._in_text, ""
        elif char == "{" and "," in self._held:
            self._state, self._call = self._in_call, CallObject()
            return text
        elif char in _SPACE + ",":
            self._held += char
        else:
            self._state, self._held = self._in_text, ""
            return text
        return rest

    def _rest(self) -> str:
        if self._state == self._in_call:
            return "" if self._call.begun else self._held + self._call.raw
        if self._state == self._before_list:
            return self._held
        return "" if self._state == self._after_call else self._text.finish()
