"""Finds stop strings in a stream of text, however it is cut into pieces, and never lets a part of one through."""

from collections.abc import Iterator, Sequence


class StopStrings:
    """Lets text through up to a stop string, and holds back an ending that may become one.

    The stop string that is completed first ends the text; if several are completed by the same character, the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` must not be empty, nor contain an empty string."""
        self._stops = tuple(stops)
        self.firsts = frozenset(stop[0] for stop in self._stops)
        """The first characters of the stop strings: while nothing is held back, text without them passes unchanged."""
        self._held = ""

    def push(self, text: str, *, may_end: bool = True) -> tuple[str, bool]:
        """Add text. Returns what may be sent now, and whether a stop string was found; nothing may follow then.

        If the text must not end yet (`may_end` is false), a stop string may begin in it, but not end in it.
        """
        num_held, text = len(self._held), self._held + text
        ends = list(self._ends(text, num_held)) if may_end else []
        if ends:
            self._held = ""
            return text[: min(ends)[1]], True
        cut = self._first_possible_start(text)
        self._held = text[cut:]
        return text[:cut], False

    @property
    def is_settled(self) -> bool:
        """Whether nothing is held back."""
        return not self._held

    def finish(self) -> str:
        """Return what was held back: the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _ends(self, text: str, num_held: int) -> Iterator[tuple[int, int]]:
        """Yield (end, start) of each stop string that ends in the new text, after the first `num_held` characters."""
        for stop in self._stops:
            start = text.find(stop, max(0, num_held - len(stop) + 1))
            if start >= 0:
                yield start + len(stop), start

    def _first_possible_start(self, text: str) -> int:
        return min(self._possible_start(text, stop) for stop in self._stops)

    @staticmethod
    def _possible_start(text: str, stop: str) -> int:
        start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while start >= 0:
            if stop.startswith(text[start:]):
                return start
            start = text.find(stop[0], start + 1)
        return len(text)
