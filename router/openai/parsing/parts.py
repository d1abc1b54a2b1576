"""What an output consists of, as it comes in a stream, and who takes it apart.

Parts follow one another in the order of the output. However an output is cut into pieces, the same parts come of it,
once neighbours of a kind are joined: so a stream shows what a whole answer shows.
"""

from typing import Protocol, TypeAlias

import msgspec


class Content(msgspec.Struct, frozen=True):
    """Text for the reader."""

    text: str


class Reasoning(msgspec.Struct, frozen=True):
    """What the model thinks before it answers."""

    text: str


class CallBegin(msgspec.Struct, frozen=True):
    """A tool is called; its arguments follow."""

    name: str


class CallArguments(msgspec.Struct, frozen=True):
    """A piece of the arguments of the last call, which are JSON once all of them are here."""

    text: str


class CallEnd(msgspec.Struct, frozen=True):
    """The last call is whole: its arguments are all here. A call without it was cut short, and nobody can make it."""


Part: TypeAlias = Content | Reasoning | CallBegin | CallArguments | CallEnd


class Parser(Protocol):
    """Of one output. `push` and `finish` may hold text back, and never lose any that is not markup."""

    @property
    def passes(self) -> bool:
        """Whether whatever is still to come is content as it stands, and nothing is held back."""

    def push(self, text: str) -> list[Part]:
        """What is certain now."""

    def finish(self) -> list[Part]:
        """What is left at the end. Nothing is pushed after it."""


class PlainParser:
    """For an output that is nothing but content."""

    passes = True

    def push(self, text: str) -> list[Part]:
        """As it is."""
        return [Content(text)] if text else []

    def finish(self) -> list[Part]:
        """Nothing is ever left."""
        return []
