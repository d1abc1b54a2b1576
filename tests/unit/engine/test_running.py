import pytest

from engine.request import RequestState
from engine.rows import Rows
from engine.running import Running


@pytest.fixture
def rows() -> Rows:
    return Rows(2, 4)


@pytest.fixture
def running(rows, make_request):
    running = Running(rows)
    for key in range(2):
        running.add(make_request([1, 2, 3], key=key))
    return running


def test_newcomers_are_reported_once_and_order_is_that_of_arrival(running):
    requests, row = running.in_order()
    assert [request.key for request in requests] == [0, 1]
    assert row.tolist() == [request.row for request in requests]
    assert running.take_newcomers() == requests
    assert running.take_newcomers() == []
    assert [request.key for request in running.from_latest(0)] == [1, 0]


def test_a_row_is_free_at_once_if_no_step_is_under_way(running):
    first, second = running
    assert first.state is RequestState.RUNNING
    running.stop(first)
    assert first.row == -1
    assert list(running) == [second]
    assert not running.is_departing(first)


def test_a_row_is_kept_until_the_steps_that_write_for_it_have_landed(running, rows):
    departed, stopped = running
    rows.num_pending[[departed.row, stopped.row]] = 1
    running.depart(departed)
    running.stop(stopped)
    assert not len(running)
    assert list(running.departing()) == [departed, stopped]
    assert running.let_go() == []
    rows.num_pending[stopped.row] = 0
    assert running.let_go() == [stopped]
    assert (stopped.row, list(running.departing())) == (-1, [departed])
