"""A late KV transfer is given up after a while; other waiting does not count."""

import asyncio
from collections.abc import Callable

import pytest

from router.serving.patience import LEAST_S, SOON_S, TICK_S, Patience
from tests.virtual_clock import Clock, run

QUEUE_S = 0.25


def ends_at(compute_s: float, *story: float | str | Callable[[Clock], None]) -> float | None:
    """Return when patience ends, in seconds. Numbers are pauses, names are calls."""
    ends: list[float] = []

    async def main(clock: Clock) -> None:
        patience = Patience(compute_s, lambda: ends.append(clock.now))
        for step in story:
            if step == "granted":
                patience.granted(QUEUE_S)
            elif isinstance(step, str):
                getattr(patience, step)()
            elif callable(step):
                step(clock)
            else:
                await asyncio.sleep(step)
        await asyncio.sleep(100)

    run(main)
    assert len(ends) <= 1
    return ends[0] if ends else None


@pytest.mark.parametrize(
    ("compute_s", "expected_s"), [(0.0, LEAST_S), (0.3, LEAST_S), (2.5, 2.5), (7.0, 7.0)], ids=lambda s: f"{s:g} s"
)
def test_it_lasts_as_long_as_computing_again_would(compute_s: float, expected_s: float) -> None:
    assert ends_at(compute_s, "granted", 5.0, "begun") == pytest.approx(5.0 + expected_s, abs=TICK_S)


def test_patience_does_not_end_after_the_transfer() -> None:
    assert ends_at(0.0, "granted", "begun", 0.5 * LEAST_S, "stop") is None
    assert ends_at(0.0, "granted", "stop", "begun") is None
    assert ends_at(0.0, "stop", "begun", "granted") is None


def test_a_grant_may_come_just_after_the_first_token() -> None:
    assert ends_at(0.0, "begun", SOON_S / 2, "granted") == pytest.approx(SOON_S / 2 + LEAST_S, abs=TICK_S)


def test_waiting_for_blocks_is_no_lateness() -> None:
    assert ends_at(0.0, "begun") is None
    assert ends_at(0.0, "begun", 5.0, "granted", 0.8 * LEAST_S, "stop") is None


@pytest.mark.parametrize(("compute_s", "expected_s"), [(0.0, LEAST_S), (0.5, 0.5 + LEAST_S), (3.0, 6.0)])
def test_a_prompt_that_waited_for_its_grant_may_be_computed_again_first(compute_s: float, expected_s: float) -> None:
    expected_s += 2 * SOON_S + QUEUE_S
    assert ends_at(compute_s, "begun", 2 * SOON_S, "granted") == pytest.approx(expected_s, abs=TICK_S)


def test_the_time_for_which_this_process_was_away_is_not_held_against_anybody() -> None:
    def away(clock: Clock) -> None:
        clock.now += 30.0

    assert ends_at(0.0, "granted", "begun", away, 0.4 * LEAST_S, "stop") is None
