import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from baton.text.stop_strings import StopStrings


def run(stops, pieces):
    stop, sent = StopStrings(stops), ""
    for piece in pieces:
        text, found = stop.push(piece)
        sent += text
        if found:
            return sent, True
    return sent + stop.finish(), False


def by_definition(stops, text):
    """Character by character: the first at which a stop string is complete ends the text."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@example(stops=["ab.a", "b."], pieces=["ab.a"])
@example(stops=["ab.a", "b."], pieces=["ab", ".a"])
@given(
    stops=st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=4),
    pieces=st.lists(st.text("ab.", max_size=5), max_size=8),
)
def test_the_result_does_not_depend_on_the_pieces(stops, pieces):
    assert run(stops, pieces) == by_definition(stops, "".join(pieces))


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
    pieces=st.lists(st.text("ab", max_size=3), max_size=8),
)
def test_nothing_is_sent_that_a_stop_string_could_take_back(stops, pieces):
    stop, sent = StopStrings(stops), ""
    for i in range(len(pieces)):
        text, found = stop.push(pieces[i])
        sent += text
        if found:
            break
    assert by_definition(stops, "".join(pieces))[0].startswith(sent)


@example(stops=["xby", "b"], before=["xb"], after=["z"])
@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    before=st.lists(st.text("ab", max_size=4), max_size=4),
    after=st.lists(st.text("ab", max_size=4), max_size=4),
)
def test_a_stop_string_can_begin_before_the_text_may_end(stops, before, after):
    stop, text, num_safe = StopStrings(stops), "".join([*before, *after]), len("".join(before))
    sent = "".join(stop.push(piece, may_end=False)[0] for piece in before)
    for piece in after:
        more, found = stop.push(piece)
        sent += more
        if found:
            break
    else:
        sent += stop.finish()
    ends = [end for end in range(num_safe + 1, len(text) + 1) if text[:end].endswith(tuple(stops))]
    longest = max((len(s) for s in stops if ends and text[: ends[0]].endswith(s)), default=0)
    assert sent == (text[: ends[0] - longest] if ends else text)


def test_only_a_possible_beginning_of_a_stop_string_is_held_back():
    stop = StopStrings(["\n\nUser:"])
    assert stop.push("Hello\n") == ("Hello", False)
    assert stop.push("there\n\nUs") == ("\nthere", False)
    assert stop.push("e it") == ("\n\nUse it", False)
    assert stop.finish() == ""


@pytest.mark.timeout(20)
def test_many_long_stop_strings_stay_cheap():
    stop = StopStrings([f"{'a' * (1000 + i)}b" for i in range(16)])
    for _ in range(500):
        stop.push("a")


@given(
    stops=st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3),
    text=st.text("abxyz", max_size=6),
)
def test_text_without_the_first_character_of_a_stop_string_passes_unchanged(stops, text):
    stop = StopStrings(stops)
    assert stop.is_settled
    result = stop.push(text)
    if stop.firsts.isdisjoint(text):
        assert (result, stop.is_settled) == ((text, False), True)
