"""A cache of grammars that were asked for lately: compiled, or refused with a reason."""

import threading
from collections import OrderedDict

from llguidance import LLMatcher

from baton.request import Grammar, GrammarKind

MAX_ENTRIES = 256
MAX_BYTES = 128 * 2**20
_OVERHEAD_BYTES = 4096

Key = tuple[GrammarKind, str]


class GrammarCache:
    """An LRU cache, bounded by number of entries and by memory. Thread-safe."""

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._entries: OrderedDict[Key, tuple[LLMatcher | str, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, grammar: Grammar) -> LLMatcher | str | None:
        """Return a matcher in its initial state, to be copied; or why the grammar is refused; None if not cached."""
        key = (grammar.kind, grammar.text)
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, grammar: Grammar, outcome: LLMatcher | str, num_bytes: int) -> None:
        """Store an outcome, which takes `num_bytes` besides the grammar's text."""
        key, size = (grammar.kind, grammar.text), num_bytes + len(grammar.text) + _OVERHEAD_BYTES
        with self._lock:
            _, old_size = self._entries.pop(key, (None, 0))
            self._entries[key] = (outcome, size)
            self.num_bytes += size - old_size
            while len(self._entries) > self._max_entries or self.num_bytes > self._max_bytes:
                _, (_, evicted) = self._entries.popitem(last=False)
                self.num_bytes -= evicted
