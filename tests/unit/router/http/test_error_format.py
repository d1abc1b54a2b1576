"""Errors as clients see them: what the message names, and the headers."""

import pytest

from baton.errors import ContextLengthExceeded, InvalidRequest, ModelNotFound, NoCapacity
from router.http.error_format import MethodNotAllowed, error_headers, error_object


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InvalidRequest("Unknown field", param="n"), "n: Unknown field"),
        (InvalidRequest("Not an integer", param="n"), "n: Not an integer"),
        (InvalidRequest("nor this", param="n"), "n: nor this"),
        (InvalidRequest("n is too large", param="n"), "n is too large"),
        (InvalidRequest("stop[0] is too long", param="stop[0]"), "stop[0] is too long"),
        (InvalidRequest("Expected less", param="stop[0]"), "stop[0]: Expected less"),
        (InvalidRequest("The body is no JSON"), "The body is no JSON"),
        (ContextLengthExceeded("It is too long", param="messages"), "It is too long"),
        (ModelNotFound("No such thing", param="model"), "No such thing"),
    ],
)
def test_the_message_names_the_field_once(error, message):
    assert error_object(error)["error"]["message"] == message


@pytest.mark.parametrize(("retry_after_s", "header"), [(0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (30.2, b"31")])
def test_retry_after_is_rounded_up(retry_after_s, header):
    error = NoCapacity("none")
    error.retry_after_s = retry_after_s
    assert error_headers(error) == [(b"retry-after", header)]


def test_a_405_names_the_allowed_methods():
    assert error_headers(MethodNotAllowed("no", ("GET", "HEAD"))) == [(b"allow", b"GET, HEAD")]
