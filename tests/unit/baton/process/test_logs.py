import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest

from baton.process import logs


@pytest.fixture
def logged() -> Iterator[Callable[..., str]]:
    root = logging.getLogger()
    before, level, raising = root.handlers[:], root.level, logging.raiseExceptions

    def log(log_format: str, message: str, **extra: str) -> str:
        stream = io.StringIO()
        logs.log_to_stderr("info", log_format, stream)
        logging.getLogger("room").info(message, extra=extra)
        logging.getLogger("room").debug("too fine")
        return stream.getvalue()

    yield log
    root.handlers[:], logging.raiseExceptions = before, raising
    root.setLevel(level)


def test_json_format_gives_one_object_per_line(logged: Callable[..., str]) -> None:
    line = logged("json", 'said "so"', request_id="r1")
    entry = json.loads(line)
    assert line.count("\n") == 1
    assert entry.pop("ts") > 1e9
    assert entry == {"level": "info", "logger": "room", "message": 'said "so"', "request_id": "r1"}


def test_text_format_ends_with_the_request_id(logged: Callable[..., str]) -> None:
    assert logged("text", "ready", request_id="r1").endswith(" info    room: ready [r1]\n")
