"""Parses reasoning in the format of DeepSeek's and Qwen's models: `<think>…</think>` before everything else.

Some templates open the block themselves, at the end of the prompt. Line breaks around the block and at its inner edges
are dropped.
"""

from router.openai.parsing.markers import Until
from router.openai.parsing.parts import Parser, Part, Reasoning

OPENING = "<think>"
CLOSING = "</think>"


class ReasoningParser:
    """Splits the reasoning off; `then` parses what follows."""

    def __init__(self, then: Parser, *, opened: bool = False) -> None:
        """`opened`: the prompt ends with `<think>`."""
        self.thinking = opened
        self._then = then
        self._beginning: str | None = None if opened else ""  # start of an output that may open the block
        self._until = Until(CLOSING)
        self._breaks = ""  # line breaks that may be the last ones of the block
        self._at_edge = opened  # whether line breaks are dropped
        self._passing = False  # whether all text goes to `then`

    @property
    def passes(self) -> bool:
        """See `Parser`."""
        return self._passing and self._then.passes

    def push(self, text: str) -> list[Part]:
        """See `Parser`."""
        if self._passing:
            return self._then.push(text)
        if self._beginning is not None:
            return self._begin(self._beginning + text)
        return self._think(text) if self.thinking else self._after(text)

    def finish(self) -> list[Part]:
        """See `Parser`. An output that ends within the block is all reasoning."""
        parts: list[Part] = []
        if self._beginning:
            parts = self._then.push(self._beginning)
        elif self.thinking:
            parts = self._reasoning(self._until.finish())
        return [*parts, *self._then.finish()]

    def _begin(self, text: str) -> list[Part]:
        bare = text.lstrip()
        if bare.startswith(OPENING):
            self._beginning, self.thinking, self._at_edge = None, True, True
            return self._think(bare[len(OPENING) :])
        if OPENING.startswith(bare):
            self._beginning = text
            return []
        self._beginning, self._passing = None, True
        return self._then.push(text)

    def _think(self, text: str) -> list[Part]:
        before, marker, after = self._until.push(text)
        parts = self._reasoning(before)
        if marker:
            self.thinking, self._at_edge = False, True
            parts += self._after(after)
        return parts

    def _reasoning(self, text: str) -> list[Part]:
        if self._at_edge:
            text = text.lstrip("\r\n")
            self._at_edge = not text
        text = self._breaks + text
        shown = text.rstrip("\r\n")
        self._breaks = text[len(shown) :]
        return [Reasoning(shown)] if shown else []

    def _after(self, text: str) -> list[Part]:
        text = text.lstrip("\r\n")
        self._passing = bool(text)
        return self._then.push(text) if text else []
