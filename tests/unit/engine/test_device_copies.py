"""On a CPU nothing is copied."""

import numpy as np
import torch

from engine.device_copies import Returning, to_device


def test_arrays_are_the_tensors():
    array = np.arange(5)
    tensor = to_device(array, torch.device("cpu"))
    array[2] = 17
    assert tensor.tolist() == [0, 1, 17, 3, 4]


def test_results_are_returned_as_they_are():
    tensors = [torch.arange(3), torch.empty(0, dtype=torch.bool)]
    assert all(got is one for got, one in zip(Returning(tensors).wait(), tensors, strict=True))
