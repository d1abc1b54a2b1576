import asyncio
import http.client
import socket
import urllib.error
import urllib.request

import pytest

from baton.net.failure import reason


def failure_of(call) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


def test_a_refused_connection_is_named_the_same_by_every_client():
    urllib_ = failure_of(lambda: urllib.request.urlopen("http://127.0.0.1:1", timeout=5))
    plain = failure_of(lambda: socket.create_connection(("127.0.0.1", 1), timeout=5))
    asyncio_ = failure_of(lambda: asyncio.run(asyncio.open_connection("127.0.0.1", 1)))
    several = OSError(
        "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0), [Errno 111] Connect call …"
    )
    assert {reason(error) for error in (urllib_, plain, asyncio_, several)} == {"Connection refused"}


def test_a_host_that_does_not_exist():
    error = failure_of(lambda: socket.create_connection(("no.such.host.invalid", 1), timeout=5))
    assert reason(error) == str(error).partition("] ")[2]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "timed out"),
        (http.client.BadStatusLine("hello\r\n"), "the answer is not HTTP"),
        (http.client.RemoteDisconnected("Remote end closed connection"), "Remote end closed connection"),
        (ConnectionError("two\nlines"), "two lines"),
        (ConnectionError(), "ConnectionError"),
        (PermissionError(13, "Permission denied", "/x"), "Permission denied"),
    ],
)
def test_other_failures(error: Exception, words: str):
    assert reason(error) == words
