import threading

import pytest

from baton.process.threads import started_pool


def test_all_threads_are_started_at_once():
    pool = started_pool(3, "trio")
    try:
        assert [thread.name for thread in threading.enumerate() if thread.name.startswith("trio")] == [
            "trio_0",
            "trio_1",
            "trio_2",
        ]
        assert list(pool.map(str, range(5))) == list("01234")
    finally:
        pool.shutdown()


@pytest.mark.parametrize("num_given", [0, 1, 2])
def test_if_one_thread_cannot_be_started_none_is_left(monkeypatch, num_given):
    start, given = threading.Thread.start, []

    def start_some(thread):
        if len(given) == num_given:
            raise RuntimeError("can't start new thread")
        given.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_some)
    with pytest.raises(OSError, match="no thread can be started"):
        started_pool(3, "trio")
    for thread in given:
        thread.join(5)
        assert not thread.is_alive()
