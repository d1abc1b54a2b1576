"""Tells special tokens in a client's text from those of the chat template, to encode the former as plain text.

A chat template writes special tokens (`<|im_start|>`) between the texts of clients. Once rendered, a client's
`<|im_start|>` would look like the template's. So before rendering, each one in a client's text is put between two marks
(Unicode noncharacters), by which it is found in the result. A conversation without special tokens gets no marks, so its
template renders it unchanged.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from baton.errors import InvalidRequest

_NONCHARACTERS = [chr(c) for c in range(0xFDD0, 0xFDF0)]
_WINDOW_CHARS = 16 * 1024  # per regex call, since a call holds the GIL


class Marks(NamedTuple):
    """Two characters that occur nowhere in a conversation."""

    opening: str
    closing: str


class Piece(NamedTuple):
    """A run of text. `quoted`: it is the spelling of a special token, to be encoded as plain text."""

    text: str
    quoted: bool


class ControlTokens:
    """The special tokens of one tokenizer."""

    def __init__(self, contents: Iterable[str]) -> None:
        longest_first = sorted((c for c in contents if c), key=len, reverse=True)
        self._longest = len(longest_first[0]) if longest_first else 0
        self._prefixes = {c[:2] for c in longest_first}
        self._any = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._pattern = re.compile(self._any)

    def occur_in(self, text: str) -> bool:
        """Whether any special token occurs in `text`."""
        return next(self._matches(text), None) is not None

    def count(self, text: str) -> int:
        """Count the special tokens in `text`, without overlap; at each position the longest one counts."""
        return sum(1 for _ in self._matches(text))

    def choose_marks(self, texts: list[str]) -> Marks:
        """Choose marks that occur in none of a conversation's `texts`. Raises InvalidRequest if there are none left."""
        unused = [c for c in _NONCHARACTERS if not any(c in text for text in texts)]
        if len(unused) < 2:
            raise InvalidRequest("the messages contain too many of Unicode's noncharacters", param="messages")
        return Marks(unused[0], unused[1])

    def mark(self, text: str, marks: Marks) -> str:
        """Return `text` with marks around each special token."""
        return "".join(
            f"{marks.opening}{piece.text}{marks.closing}" if piece.quoted else piece.text for piece in self.split(text)
        )

    def split(self, text: str) -> list[Piece]:
        """Split `text` into pieces, with every special token as a quoted piece."""
        pieces, end = [], 0
        for match in self._matches(text):
            pieces += [Piece(text[end : match.start()], False), Piece(match.group(), True)]
            end = match.end()
        return [piece for piece in (*pieces, Piece(text[end:], False)) if piece.text]

    def split_marked(self, rendered: str, marks: Marks) -> list[Piece]:
        """Split a rendered conversation into pieces, with every marked special token as a quoted piece.

        A single mark, which the template has torn from its token, is dropped, but still separates two pieces.
        """
        parts = re.split(f"{marks.opening}({self._any}){marks.closing}|[{marks.opening}{marks.closing}]", rendered)
        return [Piece(text, i % 2 == 1) for i, text in enumerate(parts) if text]

    def _matches(self, text: str) -> Iterator[re.Match[str]]:
        if not any(prefix in text for prefix in self._prefixes):
            return
        position = 0
        while position < len(text):
            window_end = position + _WINDOW_CHARS
            match = self._pattern.search(text, position, window_end + self._longest - 1)
            if match is not None and match.start() < window_end:
                yield match
                position = match.end()
            else:
                position = window_end
