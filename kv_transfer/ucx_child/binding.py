"""Loads ucxx, the UCX binding; the only module that imports it."""

from typing import Any, NamedTuple


class Binding(NamedTuple):
    """The parts of ucxx that are used."""

    ucx: Any  # ucxx.libucxx
    array: Any  # wraps an object with the buffer protocol


def load() -> Binding:
    """Import ucxx; UCX reads its environment variables now. Raises ImportError or OSError."""
    import ucxx
    from ucxx._lib.arr import Array

    return Binding(ucxx.libucxx, Array)
