"""Packets between the ends of a shared-memory connection: malformed ones are refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transfer.shm.frames import (
    MAX_PACKET_BYTES,
    WELCOME,
    Frame,
    Hello,
    ack,
    acked,
    reason_of,
    refusal,
)
from kv_transfer.shm.host_memory import MAX_RUNS, pack_runs, unpack_runs

numbers = st.integers(0, 2**64 - 1)
run = st.tuples(st.integers(0, 2**47), st.integers(1, 2**40))


@given(numbers, numbers, st.lists(run, min_size=1, max_size=20))
def test_frames_are_decoded_as_they_were_encoded(sequence, tag, runs):
    frame = Frame(sequence, tag, pack_runs(runs))
    assert Frame.unpack(frame.pack()) == frame
    assert unpack_runs(frame.source) == runs


def test_the_largest_frame_fits_a_packet():
    largest = Frame(1, 2, pack_runs([(1, 1)] * MAX_RUNS))
    assert len(largest.pack()) <= MAX_PACKET_BYTES
    assert len(unpack_runs(largest.source)) == MAX_RUNS
    with pytest.raises(ValueError, match="not a message"):
        unpack_runs(pack_runs([(1, 1)] * (MAX_RUNS + 1)))


@given(st.binary(max_size=100))
def test_random_bytes_are_refused_or_decoded_within_bounds(packet):
    for unpack in (Frame.unpack, Hello.unpack, unpack_runs, acked):
        try:
            unpack(packet)
        except ValueError:
            continue
    assert isinstance(reason_of(packet), str)


@pytest.mark.parametrize("runs", [[], [(1, 0)], [(1, 1), (2**64 - 1, 1)], [(5, 2**64 - 1), (1, 1)]])
def test_impossible_addresses_are_refused(runs):
    with pytest.raises(ValueError, match=r"not a message|cannot be"):
        unpack_runs(b"".join(struct.pack("<QQ", *run) for run in runs))


def test_hello_ack_and_refusal():
    hello = Hello(b"s" * 32, b"n" * 40)
    assert Hello.unpack(hello.pack()) == hello
    assert acked(ack(2**63)) == 2**63
    assert reason_of(refusal("not permitted")) == "not permitted"
    assert reason_of(refusal("ä" * 2**20)) == "ä" * 100  # fits a packet
    assert refusal("") != WELCOME
    assert reason_of(b"") == "the decode node refused the connection"
