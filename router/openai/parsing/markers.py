"""Finds markers in a stream of text, however it is cut into pieces."""


class Until:
    """Lets text through up to the first of some markers, and holds back an ending that may become one."""

    def __init__(self, *markers: str) -> None:
        self._markers = markers
        self._firsts = frozenset(marker[0] for marker in markers)
        self._held = ""

    def push(self, text: str) -> tuple[str, str, str]:
        """Return the text before a marker, the marker ("" while none was found), and the text after it."""
        if not self._held and self._firsts.isdisjoint(text):  # the usual case
            return text, "", ""
        text = self._held + text
        self._held = ""
        found = [(start, -len(marker), marker) for marker in self._markers if (start := text.find(marker)) >= 0]
        if found:
            start, _, marker = min(found)
            return text[:start], marker, text[start + len(marker) :]
        num_held = max(_overlap(text, marker) for marker in self._markers)
        cut = len(text) - num_held
        self._held = text[cut:]
        return text[:cut], "", ""

    def finish(self) -> str:
        """Return what was held back: the text has ended without a marker."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, marker: str) -> int:
    """Return how many characters at the end of `text` are a beginning of `marker`, but not all of it."""
    for num_chars in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:num_chars]):
            return num_chars
    return 0
