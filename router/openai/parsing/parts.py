"""The parts of an output, and the interface of parsers that produce them from a stream.

Parts are in the order of the output. However the output is cut into pieces, the parts are the same once adjacent parts
of one kind are joined; so a stream shows the same as a whole answer.
"""

from typing import Protocol, TypeAlias

import msgspec


class Content(msgspec.Struct, frozen=True):
    """Text for the reader."""

    text: str


class Reasoning(msgspec.Struct, frozen=True):
    """The model's reasoning before its answer."""

    text: str


class CallBegin(msgspec.Struct, frozen=True):
    """The start of a tool call; its arguments follow."""

    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """A piece of the last call's arguments, which together are JSON."""

    text: str


class CallEnd(msgspec.Struct, frozen=True):
    """The end of the last call: its arguments are complete. A call without it was cut off, and cannot be executed."""


Part: TypeAlias = Content | Reasoning | CallBegin | CallArguments | CallEnd


class Parser(Protocol):
    """The parser of one output. It may hold text back, but never loses any that is not markup."""

    @property
    def passes(self) -> bool:
        """Whether nothing is held back, and all further text is content that passes unchanged."""

    def push(self, text: str) -> list[Part]:
        """Add text, and return the parts that are certain now."""

    def finish(self) -> list[Part]:
        """Return the remaining parts at the end of the output."""


class PlainParser:
    """The parser of an output that is all content."""

    passes = True

    def push(self, text: str) -> list[Part]:
        """See `Parser`."""
        return [Content(text)] if text else []

    def finish(self) -> list[Part]:
        """See `Parser`: nothing is ever held back."""
        return []
