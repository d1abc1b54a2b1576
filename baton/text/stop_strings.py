"""Stop strings in a stream of text: found however the text is cut into pieces, and never sent in part."""

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to a stop string, and holds back an ending that may become one.

    The stop string that is complete first ends the text, whichever pieces it came in; of several that are complete at
    the same character the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """`stops` are not empty."""
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops))
        self.firsts = frozenset(stop[0] for stop in self._stops)
        """A text that follows nothing held back goes through whole if it has none of these characters."""
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """What may be sent now, and whether a stop string was found (then nothing may follow)."""
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
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

    def _first_possible_start(self, text: str) -> int:
        tail_start = max(0, len(text) - self._longest + 1)
        return min((self._possible_start(text, stop, tail_start) for stop in self._stops), default=len(text))

    @staticmethod
    def _possible_start(text: str, stop: str, tail_start: int) -> int:
        start = text.find(stop[0], tail_start)
        while start >= 0:
            if stop.startswith(text[start:]):
                return start
            start = text.find(stop[0], start + 1)
        return len(text)
