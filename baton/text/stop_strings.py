"""Stop strings in a stream of text: found however the text is cut into pieces, and never sent in part."""

from collections.abc import Iterator, Sequence


class StopStrings:
    """Lets text through up to a stop string, and holds back an ending that may become one.

    The stop string that is complete first ends the text, whichever pieces it came in; of several that are complete at
    the same character the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are not empty."""
        self._stops = tuple(stops)
        self.firsts = frozenset(stop[0] for stop in self._stops)
        """A text that follows nothing held back goes through whole if it has none of these characters."""
        self._held = ""

    def push(self, text: str, *, may_end: bool = True) -> tuple[str, bool]:
        """What may be sent now, and whether a stop string was found (then nothing may follow).

        Where the text must not end yet (`may_end`), a stop string may still begin, and end in what follows.
        """
        num_held, text = len(self._held), self._held + text
        found = list(self._ends(text, num_held)) if may_end else []
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        cut = self._first_possible_start(text)
        self._held = text[cut:]
        return text[:cut], False

    @property
    def is_settled(self) -> bool:
        """Whether nothing is held back."""
        return not self._held

    def finish(self) -> str:
        """What was held back: the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _ends(self, text: str, num_held: int) -> Iterator[tuple[int, int]]:
        """(end, start) of each stop string that ends in what is new; one that ended before was not to end the text."""
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
