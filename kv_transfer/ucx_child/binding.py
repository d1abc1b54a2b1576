"""The only module that imports the UCX binding."""

from typing import Any, NamedTuple


class Binding(NamedTuple):
    """What of ucxx is used."""

    ucx: Any  # ucxx.libucxx
    array: Any  # wraps what has the buffer protocol


def load() -> Binding:
    """Reads UCX's environment. Raises ImportError or OSError."""
    import ucxx
    from ucxx._lib.arr import Array

    return Binding(ucxx.libucxx, Array)
