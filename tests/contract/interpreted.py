"""Triton's interpreter without the half of its work that comes to nothing; what it computes stays the same."""

import functools
from dataclasses import replace
from typing import Any

from triton.runtime import interpreter


def quicken() -> None:
    """Sums of integers are checked for overflows that only debuggers hear of, and every call of one kernel function by
    another patches the whole language, which the launch has done.
    """
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=builder.options.debug)
    interpreter.InterpretedFunction.__call__ = _call


@functools.cache
def _patched(function: interpreter.InterpretedFunction) -> Any:
    """Once: Triton's own functions know their language by another name than kernels do."""
    interpreter._patch_lang(function.fn)
    return function.rewrite()


def _call(self: interpreter.InterpretedFunction, *args: Any, **kwargs: Any) -> Any:
    return _patched(self)(*args, **kwargs)
