"""Vector functions are called first where nobody calls them at the same time."""

import torch

from engine import loading, vector_math


def test_each_is_settled_with_a_single_element_before_a_table_is_made(make_engine, monkeypatch):
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
