from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.errors import Overloaded
from router.placing import admission
from router.placing.admission import AdmissionQueue, Waiting


def waiting(
    tenant: str = "a", priority: int = 1, deadline_s: float = 10.0, tokens: int = 100, **fields: Any
) -> Waiting:
    return Waiting(
        tenant=tenant,
        priority=priority,
        deadline_s=deadline_s,
        num_tokens=tokens,
        work_ms=fields.get("work_ms", float(tokens)),
    )


def line(*entries: Waiting, max_waiting: int = 1000) -> AdmissionQueue:
    queue = AdmissionQueue(max_waiting)
    for entry in entries:
        queue.push(entry)
    return queue


def served(queue: AdmissionQueue) -> list[Waiting]:
    order = []
    while (entry := queue.head()) is not None:
        queue.remove(entry, is_served=True)
        order.append(entry)
    return order


def test_the_earliest_deadline_first_and_equals_as_they_came() -> None:
    late, first, second, soon = (
        waiting(deadline_s=9),
        waiting(deadline_s=5),
        waiting(deadline_s=5),
        waiting(deadline_s=1),
    )
    assert served(line(late, first, second, soon)) == [soon, first, second, late]


def test_higher_classes_first() -> None:
    low, normal, high = waiting(priority=2, deadline_s=1), waiting(deadline_s=2), waiting(priority=0, deadline_s=3)
    assert served(line(low, normal, high)) == [high, normal, low]


def test_tenants_get_the_same_number_of_tokens_however_many_requests_they_send() -> None:
    greedy = [waiting("greedy", tokens=100, deadline_s=1) for _ in range(60)]
    modest = [waiting("modest", tokens=300, deadline_s=9) for _ in range(10)]
    order = served(line(*greedy, *modest))[:40]
    tokens = {name: sum(e.num_tokens for e in order if e.tenant == name) for name in ("greedy", "modest")}
    assert abs(tokens["greedy"] - tokens["modest"]) <= 300


def test_a_tenant_that_comes_back_has_neither_credit_nor_a_clean_slate() -> None:
    queue = line(*[waiting("a") for _ in range(10)])
    for _ in range(10):
        queue.remove(queue.head() or waiting(), is_served=True)
    queue.push(waiting("a"))
    queue.push(waiting("b"))
    assert [entry.tenant for entry in served(queue)] == ["b", "a"]
    for entry in [waiting("c") for _ in range(3)] + [waiting("b") for _ in range(3)]:
        queue.push(entry)
    assert [entry.tenant for entry in served(queue)].index("c") <= 1  # "c" gets no ten turns for its absence


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100)), max_size=30), st.data())
def test_a_request_that_bypasses_the_empty_queue_is_charged_as_if_it_had_queued(served_before: Any, data: Any) -> None:
    through, past = AdmissionQueue(), AdmissionQueue()
    for tenant, tokens in served_before:
        through.push(entry := waiting(tenant, tokens=tokens))
        through.remove(entry, is_served=True)
        past.passed(tenant, 1, tokens)
    for tenant in data.draw(st.lists(st.sampled_from("abcd"), max_size=10)):
        through.push(waiting(tenant))
        past.push(waiting(tenant))
    assert [entry.tenant for entry in served(past)] == [entry.tenant for entry in served(through)]


def test_the_number_of_remembered_idle_tenants_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_MAX_IDLE_TENANTS", 3)
    queue = AdmissionQueue()
    for n in range(10):
        queue.passed(f"t{n}", 1, 100)
    assert list(queue._classes[1]._idle) == ["t7", "t8", "t9"]


def test_giving_up_costs_nothing_and_is_idempotent() -> None:
    first, second = waiting(deadline_s=1), waiting(deadline_s=2)
    queue = line(first, second)
    queue.remove(first, is_served=False)
    queue.remove(first, is_served=False)
    assert (len(queue), queue.head()) == (1, second)
    third = waiting(deadline_s=3)
    queue.push(third)
    queue.remove(third, is_served=False)  # not the head of its tenant
    assert served(queue) == [second]
    assert queue.ahead_ms("a", 2, 100.0) == 0


def test_each_class_is_bounded() -> None:
    queue = line(waiting(), waiting(), max_waiting=2)
    with pytest.raises(Overloaded) as refusal:
        queue.push(waiting(), retry_after_s=7.0)
    assert refusal.value.retry_after_s == 7
    queue.push(waiting(priority=0))


def test_what_is_ahead_of_a_newcomer() -> None:
    queue = line(
        waiting("a", tokens=100), waiting("b", tokens=900), waiting("b", tokens=900), waiting(priority=0, tokens=7)
    )
    gone = waiting("a", tokens=300)
    queue.push(gone)
    queue.remove(gone, is_served=False)
    assert queue.ahead_ms("new", 1, 50.0) == 7 + 50 + 50  # each of the others gets as much as the newcomer meanwhile
    assert queue.ahead_ms("a", 1, 50.0) == 7 + 100 + 150
    assert queue.ahead_ms("new", 0, 50.0) == 7


ENTRIES = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.floats(0, 100), st.integers(1, 1000), st.booleans()),
    max_size=60,
)


@given(ENTRIES)
def test_every_request_leaves_the_queue_once_and_its_work_sums_to_zero(rows: Any) -> None:
    queue, left = AdmissionQueue(), []
    for tenant, priority, deadline_s, tokens, leaves in rows:
        entry = waiting(tenant, priority, deadline_s, tokens)
        queue.push(entry)
        if leaves:
            queue.remove(entry, is_served=False)
        else:
            left.append(entry)
    order = served(queue)
    assert sorted(map(id, order)) == sorted(map(id, left))
    assert [entry.priority for entry in order] == sorted(entry.priority for entry in left)
    assert len(queue) == 0
    assert queue.ahead_ms("a", 2, 1e9) == pytest.approx(0, abs=1e-6)
