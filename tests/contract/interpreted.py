"""Triton's interpreter without the half of its work that comes to nothing; what it computes stays the same.

Triton has no option for that. What is changed here has these names from 3.4 to 3.7 at least; where one is gone, the
interpreter is as slow as it comes.
"""

import contextlib
from dataclasses import replace
from typing import Any

from triton.runtime import interpreter


def quicken() -> None:
    """Sums of integers are checked for overflows that only debuggers hear of, and every call of one kernel function by
    another patches the whole language, which the launch has done.
    """
    with contextlib.suppress(AttributeError, TypeError):
        builder = interpreter.interpreter_builder
        builder.options = replace(builder.options, sanitize_overflow=builder.options.debug)
    with contextlib.suppress(AttributeError):
        _patch_once(interpreter.InterpretedFunction, interpreter.InterpretedFunction.rewrite)


def _patch_once(function: Any, rewrite: Any) -> None:
    """Patch the language for each kernel function: Triton's own functions use another name for it than ours."""
    call, have_patched = function.__call__, set()

    def call_again(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self in have_patched:
            return rewrite(self)(*args, **kwargs)
        have_patched.add(self)
        return call(self, *args, **kwargs)

    function.__call__ = call_again
