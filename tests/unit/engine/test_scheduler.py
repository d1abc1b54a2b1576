import random

import pytest

from engine.request import RequestState
from tests.unit.engine.scheduled_node import Node


@pytest.fixture
def node():
    return Node()


def test_long_prompts_come_in_chunks_beside_decoding(node, make_request):
    short, long = make_request([1] * 5, max_tokens=9), make_request([2] * 40)
    node.scheduler.add(short)
    assert node.step() == [(short, 5)]
    node.scheduler.add(long)
    assert [node.step() for _ in range(3)] == [
        [(short, 1), (long, 15)],
        [(short, 1), (long, 15)],
        [(short, 1), (long, 10)],
    ]
    assert node.step() == [(short, 1), (long, 1)]


def test_all_blocks_of_a_prompt_are_allocated_on_admission(node, make_request):
    long = make_request([2] * 40)
    node.scheduler.add(long)
    node.step()
    assert len(long.block_ids) == 10


def test_max_num_seqs(make_request):
    node = Node(max_num_seqs=2)
    requests = [make_request([i], max_tokens=2) for i in range(3)]
    for request in requests:
        node.scheduler.add(request)
    assert [[request for request, _ in node.step()] for _ in range(3)] == [requests[:2], requests[:2], requests[2:]]


def test_first_come_first_served_when_blocks_are_lacking(make_request):
    node = Node(num_blocks=8)
    first, big, small = make_request([1] * 12, max_tokens=3), make_request([2] * 24), make_request([3] * 2)
    for request in (first, big, small):
        node.scheduler.add(request)
    assert node.step() == [(first, 12)]
    assert node.step() == [(first, 1)]
    assert node.step() == [(first, 1)]
    assert node.step() == [(big, 16)]


def test_latest_is_preempted_and_continues(make_request):
    node = Node(num_blocks=6, max_num_batched_tokens=64)
    first, second = make_request([1] * 11, max_tokens=12), make_request([2] * 11, max_tokens=12)
    node.scheduler.add(first)
    node.scheduler.add(second)
    while not second.num_preemptions:
        node.step()
    assert second.num_computed_tokens == 0
    for _ in range(40):
        node.step()
    assert (first.num_preemptions, second.num_preemptions, node.scheduler.num_preemptions) == (0, 1, 1)
    assert first.state is second.state is RequestState.FINISHED
    assert second.token_ids == [2] * 11 + [7] * 12
    assert node.blocks.num_free_blocks == 6


def test_preempted_request_goes_before_newcomers(make_request):
    node = Node(num_blocks=6, max_num_batched_tokens=64)
    first, second, third = (make_request([i] * 11, max_tokens=12) for i in range(3))
    for request in (first, second):
        node.scheduler.add(request)
    while not second.num_preemptions:
        node.step()
    node.scheduler.add(third)
    assert list(node.scheduler.waiting) == [second, third]


def test_requests_begun_elsewhere_go_before_those_not_begun(make_request):
    node = Node()
    new, begun, other, gave_way = (make_request([i] * 11, max_tokens=12) for i in range(4))
    for request in (begun, other):
        request.generation.token_ids.append(7)
        request.append(7)
    gave_way.num_preemptions = 1
    node.scheduler.waiting.extend((gave_way, new))
    node.scheduler.add(begun)
    node.scheduler.add(other)
    assert list(node.scheduler.waiting) == [gave_way, begun, other, new]
    assert [request for request, _ in node.step()] == [gave_way, begun]


def test_resuming_requests_are_not_batched_with_new_ones(node, make_request):
    new, begun = make_request([1] * 6), make_request([2] * 6)
    begun.generation.token_ids.append(7)
    begun.append(7)
    node.scheduler.add(new)
    node.scheduler.add(begun)
    assert node.step() == [(begun, 7)]
    assert new in [request for request, _ in node.step()]


def test_prefill_only_requests_are_never_preempted(make_request):
    node = Node(num_blocks=7, max_num_batched_tokens=3)
    decoding, shipped = make_request([1] * 4, max_tokens=20), make_request([2] * 20, prefill_only=True)
    node.scheduler.add(decoding)
    node.step()
    node.step()
    node.scheduler.add(shipped)
    while not decoding.num_preemptions:
        assert shipped.state is not RequestState.HELD
        node.step()
    for _ in range(30):
        node.step()
        assert shipped.state in (RequestState.RUNNING, RequestState.HELD)
        assert len(shipped.block_ids) == 5
    node.scheduler.release(shipped)
    for _ in range(30):
        node.step()
    assert decoding.state is RequestState.FINISHED


def test_a_request_preempted_alone_runs_again_in_the_same_step(make_request):
    """The blocks that it releases may be all that it needs, and nothing else would wake the step loop."""
    node = Node(num_blocks=6, max_num_batched_tokens=64)
    ahead, behind = make_request([1] * 12, max_tokens=1), make_request([1] * 12, max_tokens=11)
    node.scheduler.add(ahead)
    node.scheduler.add(behind)  # computes the same prompt at the same time: pins the other's blocks as well
    while behind.state is not RequestState.FINISHED:
        assert node.step()
    assert (behind.num_preemptions, behind.num_cached_tokens) == (1, 0)  # finding its own blocks again does not count


def test_reserved_request_waits_unshared_for_its_start(node, make_request):
    reserved, other = make_request([1] * 9), make_request([1] * 9)
    assert node.scheduler.reserve(reserved)
    node.scheduler.add(other)
    assert node.step() == [(other, 9)]
    assert not set(reserved.block_ids) & set(other.block_ids)
    reserved.num_computed_tokens = 9
    node.blocks.publish(reserved)
    reserved.append(7)
    node.scheduler.start(reserved)
    assert node.step() == [(other, 1), (reserved, 1)]


def test_reserve_needs_blocks_and_yields_to_preempted_requests(make_request):
    node = Node(num_blocks=6, max_num_batched_tokens=64)
    assert not node.scheduler.reserve(make_request([9] * 25))
    first, second = make_request([1] * 11, max_tokens=14), make_request([2] * 11, max_tokens=14)
    node.scheduler.add(first)
    node.scheduler.add(second)
    while not second.num_preemptions:
        node.step()
    assert not node.scheduler.reserve(make_request([9]))


def test_admission_leaves_one_block_in_a_hundred_to_running_requests(make_request):
    node = Node(num_blocks=100, max_num_batched_tokens=500)
    first, second = make_request([1] * 4, max_tokens=6), make_request([2] * 400, max_tokens=0)
    node.scheduler.add(first)
    node.step()
    assert not node.scheduler.reserve(make_request([3] * 396))  # the other 99
    reserved = make_request([3] * 392)
    assert node.scheduler.reserve(reserved)
    node.scheduler.release(reserved)
    node.scheduler.add(second)  # it takes the whole pool, which it may if no other request runs
    while first.state is not RequestState.FINISHED:
        assert node.step() == [(first, 1)]
    assert node.step() == [(second, 400)]


def test_a_request_released_before_its_first_step_never_runs(node, make_request):
    waiting, ready = make_request([1] * 5), make_request([2] * 9)
    node.scheduler.add(waiting)
    assert node.scheduler.reserve(ready)
    node.scheduler.start(ready)
    for request in (waiting, ready):
        node.scheduler.release(request)
    assert not node.scheduler.has_work
    assert node.step() == []
    assert node.blocks.num_free_blocks == 32


def test_started_requests_wait_for_a_row(make_request):
    node = Node(max_num_seqs=1)
    running, started = make_request([1], max_tokens=3), make_request([2])
    node.scheduler.add(running)
    assert node.scheduler.reserve(started)
    node.step()
    started.num_computed_tokens = 1
    started.append(7)
    node.scheduler.start(started)
    assert [[request for request, _ in node.step()] for _ in range(3)] == [[running], [running], [started]]


@pytest.mark.parametrize("seed", range(6))
def test_in_random_runs_blocks_add_up_and_all_requests_end(make_request, seed):
    rng = random.Random(seed)
    node = Node(num_blocks=16, max_num_seqs=4, max_num_batched_tokens=rng.choice([4, 8, 30]))
    live = []
    for _ in range(150):
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 30))]
        action = rng.randrange(6)
        if action == 0:
            live.append(make_request(tokens, max_tokens=rng.randrange(1, 20), prefill_only=rng.random() < 0.3))
            node.scheduler.add(live[-1])
        elif action == 1:
            request = make_request(tokens, max_tokens=rng.randrange(2, 20))
            live += [request] * node.scheduler.reserve(request)
        elif action == 2 and live:
            node.scheduler.release(live.pop(rng.randrange(len(live))))
        elif action == 3:
            for request in [r for r in live if r.state is RequestState.RESERVED]:
                request.num_computed_tokens = request.num_tokens
                node.blocks.publish(request)
                request.append(7)
                node.scheduler.start(request)
        else:
            node.step()
    for request in [r for r in live if r.state in (RequestState.RESERVED, RequestState.HELD)]:
        node.scheduler.release(request)
    while node.scheduler.has_work:
        assert node.step()
        for request in [r for r in live if r.state is RequestState.HELD]:
            node.scheduler.release(request)
    assert node.blocks.num_free_blocks == 16
    node.blocks.check([])
