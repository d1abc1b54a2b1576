"""Special tokens that occur in what a client wrote: found, marked before a chat template runs, and found again after.

A chat template writes special tokens (`<|im_start|>`) between texts that clients wrote. Once rendered, nobody can tell
a client's `<|im_start|>` from the template's; so the client's are put between two noncharacters first. Templates see
them only in a conversation that contains special tokens, and all others render as they always do.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from baton.errors import InvalidRequest

_NONCHARACTERS = [chr(c) for c in range(0xFDD0, 0xFDF0)]
_WINDOW_CHARS = 16 * 1024  # of one regex call, which holds the interpreter lock


class Marks(NamedTuple):
    """Two characters that occur nowhere in a conversation."""

    opening: str
    closing: str


class Piece(NamedTuple):
    """A run of text; `quoted` where it is a special token that a client wrote."""

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
        """Whether any of them is part of `text`."""
        return next(self._matches(text), None) is not None

    def count(self, text: str) -> int:
        """How often any of them occurs in `text`, without overlap, the longest first."""
        return sum(1 for _ in self._matches(text))

    def choose_marks(self, texts: list[str]) -> Marks:
        """Marks for a conversation that consists of `texts`."""
        unused = [c for c in _NONCHARACTERS if not any(c in text for text in texts)]
        if len(unused) < 2:
            raise InvalidRequest("the messages use up Unicode's noncharacters", param="messages")
        return Marks(unused[0], unused[1])

    def mark(self, text: str, marks: Marks) -> str:
        """`text` with marks around each special token."""
        return "".join(
            f"{marks.opening}{piece.text}{marks.closing}" if piece.quoted else piece.text for piece in self.split(text)
        )

    def split(self, text: str) -> list[Piece]:
        """`text` in pieces; every special token in it is a quoted piece."""
        pieces, end = [], 0
        for match in self._matches(text):
            pieces += [Piece(text[end : match.start()], False), Piece(match.group(), True)]
            end = match.end()
        return [piece for piece in (*pieces, Piece(text[end:], False)) if piece.text]

    def split_marked(self, rendered: str, marks: Marks) -> list[Piece]:
        """A rendered conversation in pieces. A mark torn from its token by the template is dropped, but divides."""
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
