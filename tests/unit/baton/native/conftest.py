"""Functions of this checkout's C++ sources, compiled for the tests."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baton.native import build


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Compile a source; return the library. Skips without a compiler."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    return lambda source: build.build(source, tmp_path_factory.mktemp(source.stem))


@pytest.fixture(scope="module")
def load_compiled(compiled: Callable[[Path], Path]) -> Callable[[Any, Path], Any]:
    """Compile a source; return what its module loads from the library."""

    def load(module: Any, source: Path) -> Any:
        library = compiled(source)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(build, "library", lambda _: library)
            return module.load()

    return load
