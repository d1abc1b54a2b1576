"""Vector functions are called for the first time when no other thread calls them."""

import torch

from engine import loading, vector_math


def test_each_function_is_called_with_one_element_before_tables_are_made(make_engine, monkeypatch):
    calls = []

    def noting(function):
        def call(tensor):
            calls.append((function.__name__, tensor.numel()))
            return function(tensor)

        return call

    monkeypatch.setattr(vector_math, "_FUNCTIONS", tuple(map(noting, vector_math._FUNCTIONS)))
    tables = loading.layer_tables
    monkeypatch.setattr(loading, "layer_tables", lambda *args: calls.append(("table", 0)) or tables(*args))
    make_engine()
    assert calls[-1] == ("table", 0)
    assert {(function.__name__, 1) for function in (torch.cos, torch.sin, torch.exp, torch.log, torch.tanh)} == set(
        calls[:-1]
    )
