"""What holds for the house as a whole."""

import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_nobody_else_owns_the_names_of_our_rooms():
    """`kernels` is also published by others (ADR 1): whoever else is installed would be imported instead."""
    import kernels

    assert Path(kernels.__file__).parent == ROOT / "kernels"
    assert set(packages_distributions().get("kernels", [])) <= {"baton"}


def test_the_schema_folder_shadows_nothing():
    assert not (ROOT / "proto/__init__.py").exists()


@pytest.mark.parametrize("module", ["baton.rpc", "router", "fleet.cli"])
def test_light_rooms_load_neither_torch_nor_numpy(module):
    code = f"import {module}, sys; print([m for m in ('torch', 'numpy', 'triton') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
