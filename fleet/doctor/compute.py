"""The checks of `baton doctor` on computing: Python, torch, kernels, GPU, memory, model."""

import importlib
import shutil
import sys

import psutil

from baton import model_source
from baton.errors import ConfigError
from baton.process import interpreter
from fleet.doctor.finding import Finding, broken, ok, warning
from fleet.up.cores import available

_MIN_PYTHON, _MAX_PYTHON = (3, 11), (3, 13)
_MIN_TORCH = (2, 11)
_MIN_MEMORY_BYTES = 2 * 2**30
_SLOW_PYTHON = (
    "routers are a sixth slower: use a distribution's, or for pyenv PYTHON_CONFIGURE_OPTS=--enable-optimizations"
)


def python() -> Finding:
    """Check for a tested Python version, compiled with optimizations."""
    text = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    if sys.version_info[:2] < _MIN_PYTHON:
        return broken("python", text, "install Python 3.11, 3.12 or 3.13")
    if sys.version_info[:2] > _MAX_PYTHON:
        return warning("python", text, "this version is untested; use 3.11 to 3.13")
    if not interpreter.is_optimized():
        return warning("python", f"{text}, compiled without --enable-optimizations", _SLOW_PYTHON)
    return ok("python", text)


def torch() -> Finding:
    """Check that torch is installed and recent enough."""
    try:
        version: str = importlib.import_module("torch").__version__
    except ImportError as error:
        return broken("torch", f"cannot be imported: {error}", "pip install 'torch>=2.11'")
    if tuple(int(part) for part in version.split(".")[:2]) < _MIN_TORCH:
        return broken("torch", version, "pip install -U 'torch>=2.11'")
    return ok("torch", version)


def kernels() -> Finding:
    """Check that the CPU kernels are compiled, so that their slow torch reference is not used."""
    try:
        device = importlib.import_module("torch").device("cpu")
        dtype = importlib.import_module("torch").bfloat16
        name: str = importlib.import_module("kernels.dispatch").load(device, dtype).name
    except Exception as error:  # any reason why they cannot be loaded is the finding
        return broken("cpu kernels", f"cannot be loaded: {error}", "python -m kernels.cpu.build")
    if name == "reference":
        return warning("cpu kernels", "not compiled: attention is slow", "python -m kernels.cpu.build (needs g++)")
    return ok("cpu kernels", name)


def gpu() -> Finding:
    """Check which GPU torch sees; having none is fine."""
    try:
        cuda = importlib.import_module("torch").cuda
    except ImportError:
        return broken("gpu", "unknown without torch", "install torch")
    if cuda.is_available():
        names = [cuda.get_device_name(i) for i in range(cuda.device_count())]
        return ok("gpu", ", ".join(names))
    if shutil.which("nvidia-smi"):
        return warning("gpu", "there is a driver, but torch sees no GPU", "install torch with CUDA (see pytorch.org)")
    return ok("gpu", "none: nodes compute on the CPU")


def memory() -> Finding:
    """Check for memory for weights and KV pools, and count the cores."""
    free = psutil.virtual_memory().available
    text = f"{len(available())} cores, {free / 2**30:.1f} GiB of memory available"
    if free < _MIN_MEMORY_BYTES:
        return warning("machine", text, "free some memory, or give nodes less with --kv-memory")
    return ok("machine", text)


def checkpoint(name: str) -> Finding:
    """Check the model that `baton up` would serve."""
    if name and not name.startswith((".", "/", "~")) and "/" in name:
        return ok("model", f"{name}, from the hub or its cache")
    try:
        return ok("model", str(model_source.resolve(name).path))
    except ConfigError as error:
        return warning("model", error.message, "`baton up` needs a model")
