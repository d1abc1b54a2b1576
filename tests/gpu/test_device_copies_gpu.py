"""Copies to and from a GPU: in order, and waiting for nothing that comes later."""

import numpy as np
import pytest
import torch

from engine.device_copies import Returning, to_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]
CUDA = torch.device("cuda")


def keep_busy() -> torch.cuda.Event:
    """Some hundred milliseconds of work; the event says when it is over."""
    x = torch.randn(4096, 4096, device=CUDA, dtype=torch.bfloat16)
    for _ in range(500):
        x = (x @ x).clamp_(-1, 1)
    over = torch.cuda.Event()
    over.record()
    return over


def test_an_array_arrives_without_waiting_for_what_runs():
    to_device(np.arange(4), CUDA)  # warm
    torch.cuda.synchronize()
    over = keep_busy()
    array = np.arange(1000)
    tensor = to_device(array, CUDA)
    array[:] = 0
    assert not over.query()
    assert torch.equal(tensor.cpu(), torch.arange(1000))


def test_results_are_those_of_the_time_and_nobody_waits_for_what_comes_after():
    source = torch.arange(1000, device=CUDA)
    Returning([source]).wait()  # warm
    torch.cuda.synchronize()
    returning = Returning([source, torch.empty(0)])
    source.zero_()
    over = keep_busy()
    found, nothing = returning.wait()
    assert not over.query()
    assert torch.equal(found, torch.arange(1000))
    assert nothing.numel() == 0
