"""How often a request is retried."""

import pytest

from router.serving.failover import MAX_ATTEMPTS, MAX_FAILURES, _Failures


def test_attempts_that_brought_nothing_are_few() -> None:
    failures = _Failures()
    for _ in range(MAX_ATTEMPTS):
        assert not failures.are_too_many
        failures.add(1, of_transfer=False)
    assert failures.are_too_many


@pytest.mark.parametrize(("num_tokens", "of_transfer"), [(1, True), (2, False)])
def test_transfers_that_failed_and_attempts_that_got_on_may_be_many(num_tokens: int, of_transfer: bool) -> None:
    failures = _Failures()
    for _ in range(MAX_FAILURES):
        assert not failures.are_too_many
        failures.add(num_tokens, of_transfer=of_transfer)
    assert failures.are_too_many


def test_a_transfer_that_failed_between_others_changes_nothing() -> None:
    failures = _Failures()
    for of_transfer in (False, False, True, True, False):
        failures.add(1, of_transfer=of_transfer)
    assert not failures.are_too_many
    failures.add(1, of_transfer=False)
    assert failures.are_too_many


def test_after_one_that_got_on_they_are_counted_anew() -> None:
    failures = _Failures()
    for num_tokens in (1, 1, 1, 2, 1, 1, 1):
        failures.add(num_tokens, of_transfer=False)
    assert not failures.are_too_many
    failures.add(1, of_transfer=False)
    assert failures.are_too_many
