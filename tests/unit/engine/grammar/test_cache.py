from baton.request import Grammar, GrammarKind
from engine.grammar.cache import GrammarCache


def test_the_cache_evicts_the_least_recently_used():
    cache = GrammarCache(max_entries=2, max_bytes=100_000)
    a, b, c = (Grammar(GrammarKind.REGEX, text, "p") for text in "abc")
    cache.put(a, "A", 10)
    cache.put(b, "B", 10)
    assert cache.get(Grammar(GrammarKind.REGEX, "a", "another name")) == "A"
    cache.put(c, "C", 10)
    assert (cache.get(a), cache.get(b), cache.get(c)) == ("A", None, "C")
    cache.put(c, "C", 90_000)
    assert (cache.get(a), len(cache)) == ("A", 2)
    cache.put(b, "B", 50_000)
    assert len(cache) == 1 or cache.num_bytes <= 100_000
    cache.put(a, "A", 200_000)
    assert (len(cache), cache.num_bytes) == (0, 0)
