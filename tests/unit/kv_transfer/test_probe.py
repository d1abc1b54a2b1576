"""How `baton doctor` finds out which transports work here."""

import torch

from kv_transfer import probe
from kv_transfer.shm import process_memory
from kv_transfer.ucx import transport as ucx


def test_shared_memory_is_tried_with_a_real_process(monkeypatch):
    assert probe.why_no_shm() == ""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(process_memory, "read", refuse)
    assert "Operation not permitted" in probe.why_no_shm()


def test_reasons_are_given_for_wanted_transports_only(monkeypatch):
    monkeypatch.setattr(probe, "why_no_shm", lambda: "not permitted")
    monkeypatch.setattr(ucx, "why_unavailable", lambda: "no UCX library")
    assert probe.missing("auto") == {"shm": "not permitted", "ucx": "no UCX library"}
    assert probe.missing("ucx") == {"ucx": "no UCX library"}
    assert probe.missing("tcp") == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert probe.missing("cuda") == {"cuda": "torch sees no GPU"}
