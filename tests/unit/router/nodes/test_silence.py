"""How long a node may say nothing: what is much longer than usual is suspect, and some length is so for every node."""

from router.nodes.silence import HOPELESS_TICKS, LOST_TICKS, SUSPECT_TICKS, Silence


def after(silence: Silence, num_ticks: int) -> tuple[bool, bool, bool, bool]:
    silence.begin()
    for _ in range(num_ticks):
        silence.tick()
    return silence.is_short, silence.is_unusual, silence.is_final, silence.is_hopeless


def test_the_longer_it_lasts_the_more_give_the_node_up() -> None:
    silence = Silence()
    assert after(silence, SUSPECT_TICKS - 1) == (True, False, False, False)
    assert after(silence, SUSPECT_TICKS) == (False, True, False, False)
    assert after(silence, LOST_TICKS - 1) == (False, True, False, False)
    assert after(silence, LOST_TICKS) == (False, True, True, False)
    assert after(silence, HOPELESS_TICKS - 1) == (False, True, True, False)
    assert after(silence, HOPELESS_TICKS) == (False, True, True, True)


def test_a_node_that_was_as_silent_lately_is_not_suspect() -> None:
    silence = Silence()
    after(silence, SUSPECT_TICKS - 1)
    silence.end()
    assert silence.is_short
    assert not after(silence, 2 * SUSPECT_TICKS - 3)[1]
    assert after(silence, 2 * SUSPECT_TICKS - 2)[1]
    silence.begin()
    silence.end()
    assert not after(silence, SUSPECT_TICKS)[1]  # one word at once does not make it forgotten
    for _ in range(1000):
        silence.begin()
        silence.end()
    assert after(silence, SUSPECT_TICKS)[1]
