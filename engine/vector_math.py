"""MKL's vector functions, which torch calls on CPUs, settled before several threads use them."""

import torch

_FUNCTIONS = (torch.cos, torch.sin, torch.exp, torch.log, torch.tanh)  # those that steps and tables are made of


def settle() -> None:
    """Call each for the first time, on this thread alone.

    At its first call a function finds out which processor it is for. Of two threads that make that call together, on
    busy cores, one took other code at times: in two of a thousand processes half of a rotary table had other bits.
    """
    one = torch.ones(1)
    for function in _FUNCTIONS:
        function(one)
