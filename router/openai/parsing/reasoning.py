"""Parses reasoning in the format of DeepSeek's and Qwen's models: `<think>…</think>` before everything else.

Some templates open the block themselves, at the end of the prompt. Line breaks around the block and at its inner edges
are dropped.

Some models call a tool without closing the block. Text from the beginning of a call on is held back: it is reasoning if
the block is closed after all, and otherwise the output's calls.
"""

from router.openai.parsing.markers import Until
from router.openai.parsing.parts import Parser, Part, Reasoning

OPENING = "<think>"
CLOSING = "</think>"


class ReasoningParser:
    """Splits the reasoning off; `then` parses what follows."""

    def __init__(self, then: Parser, *, opened: bool = False, calls: tuple[str, ...] = ()) -> None:
        """`opened`: the prompt ends with `<think>`. `calls`: how a call begins that may end an unclosed block."""
        self.thinking = opened
        self._then = then
        self._beginning: str | None = None if opened else ""  # start of an output that may open the block
        self._until = Until(CLOSING, *calls)
        self._held: list[str] = []  # from the beginning of a call within the block
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
        """See `Parser`. An output that ends within the block is all reasoning, up to a call."""
        parts: list[Part] = []
        if self._beginning:
            parts = self._then.push(self._beginning)
        elif self.thinking:
            rest = self._until.finish()
            parts = self._then.push("".join([*self._held, rest])) if self._held else self._reasoning(rest)
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
        parts: list[Part] = []
        while text:
            before, marker, text = self._until.push(text)
            if self._held:
                self._held.append(before)
            else:
                parts += self._reasoning(before)
            if marker == CLOSING:
                parts += self._reasoning("".join(self._held))
                self.thinking, self._at_edge = False, True
                return parts + self._after(text)
            if marker:
                self._held.append(marker)
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
