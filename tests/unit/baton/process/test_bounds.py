import argparse

import pytest

from baton.process.bounds import Bounded, positive, real, whole


@pytest.mark.parametrize(
    ("kind", "text", "number"),
    [
        (whole(), "1", 1),
        (whole(0, 9), "9", 9),
        (real(), "0", 0.0),
        (real(0.5, 2), "2", 2.0),
        (positive(3), "1e-9", 1e-9),
    ],
)
def test_a_number_within_its_bounds_is_taken(kind: Bounded, text: str, number: float) -> None:
    assert kind(text) == number
    assert type(kind(text)) is type(number)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (whole(), "0", "0: expected a whole number from 1 to 1,000,000"),
        (whole(2, 64), "65", "65: expected a whole number from 2 to 64"),
        (whole(), "1.5", "1.5: expected a whole number from 1"),
        (whole(), "9" * 5000, f"{'9' * 20}: expected a whole number"),
        (real(), "-0.1", "-0.1: expected a number from 0 to 1,000,000"),
        (real(), "nan", "nan: expected a number from 0"),
        (real(), "1e999", "1e999: expected a number from 0"),
        (real(0, 1), "x", "x: expected a number from 0 to 1"),
        (positive(), "0", "0: expected a number above 0 up to 1,000,000"),
        (positive(), "inf", "inf: expected a number above 0"),
    ],
)
def test_any_other_text_is_an_error_that_names_the_bounds(kind: Bounded, text: str, message: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as error:
        kind(text)
    assert str(error.value).startswith(message)
