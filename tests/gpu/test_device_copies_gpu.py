"""Copies to and from a GPU are made in order, and wait for nothing that is launched later."""

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
    """Launch some hundred milliseconds of work; the event is recorded after it."""
    x = torch.randn(4096, 4096, device=CUDA, dtype=torch.bfloat16)
    for _ in range(500):
        x = (x @ x).clamp_(-1, 1)
    over = torch.cuda.Event()
    over.record()
    return over


def test_an_array_is_copied_without_waiting_for_running_work():
    to_device(np.arange(4), CUDA)  # warm
    torch.cuda.synchronize()
    over = keep_busy()
    array = np.arange(1000)
    tensor = to_device(array, CUDA)
    array[:] = 0
    assert not over.query()
    assert torch.equal(tensor.cpu(), torch.arange(1000))


def test_results_are_copied_at_once_without_waiting_for_later_work():
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
