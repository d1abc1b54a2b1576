"""The reason of a failed connection, in words for people."""

import http.client
import os
import re

_ASYNCIO = re.compile(r"\[Errno (\d+)\] Connect call failed")  # alone, or in a list with one for each address


def reason(error: BaseException) -> str:
    """Return why a connection or a file operation failed, without addresses, file names and names of classes."""
    if number := _ASYNCIO.search(str(error)):
        return os.strerror(int(number[1]))
    if isinstance(inner := getattr(error, "reason", None), OSError):  # of urllib's URLError
        return reason(inner)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, http.client.HTTPException) and not isinstance(error, ConnectionError):
        return "the answer is not HTTP"
    return " ".join(str(error).split()) or type(error).__name__
