"""Initialise MKL's vector functions, which torch calls on CPUs, before several threads use them."""

import torch

_FUNCTIONS = (torch.cos, torch.sin, torch.exp, torch.log, torch.tanh)  # those that steps and tables are made of


def settle() -> None:
    """Call each function for the first time, on this thread alone.

    At its first call a function detects the processor. When two threads made that call at the same time, on busy cores,
    one of them sometimes ran different code: in two of a thousand processes half of a rotary table had other bits.
    """
    one = torch.ones(1)
    for function in _FUNCTIONS:
        function(one)
