"""GPU memory shared between processes of one host: bindings to the CUDA driver's legacy IPC.

See https://docs.nvidia.com/cuda/cuda-driver-api, "Memory Management". Only memory from cuMemAlloc can be shared, so not
torch's expandable segments. Whether two processes may share can only be found out by trying.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch

HANDLE_BYTES = 64
_LAZY_PEER_ACCESS = 1


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_byte * HANDLE_BYTES),)


class Allocation(NamedTuple):
    """An allocation of device memory, at its address in this process."""

    address: int
    num_bytes: int


def allocation_of(address: int) -> Allocation:
    """Return the allocation that contains this address. Raises OSError if there is none."""
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address))
    return Allocation(base.value, size.value)


def export(allocation: Allocation) -> bytes:
    """Return a handle with which other processes can open the allocation. Raises OSError if it cannot be shared."""
    handle = _Handle()
    _call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(allocation.address))
    return bytes(handle)


def open_handle(handle: bytes, device: torch.device) -> Allocation:
    """Open another process's allocation for reading from `device`, until `close`.

    Opening the same one again returns the same address. Raises OSError if this process cannot open it.
    """
    _make_current(device)
    address = ctypes.c_uint64()
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), _Handle.from_buffer_copy(handle), _LAZY_PEER_ACCESS)
    return allocation_of(address.value)


def close(allocation: Allocation, device: torch.device) -> None:
    """Close an allocation, once for each `open_handle`. Nothing may be reading it any more. Raises OSError."""
    _make_current(device)
    _call("cuIpcCloseMemHandle", ctypes.c_uint64(allocation.address))


def _make_current(device: torch.device) -> None:
    """Make the device's context current in this thread."""
    torch.cuda.set_device(device)


def _call(name: str, *args: Any) -> None:
    error = getattr(_library(), name)(*args)
    if error:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(error, ctypes.byref(text))
        raise OSError(error, f"{name}: {(text.value or b'unknown error').decode()}")


@cache
def _library() -> ctypes.CDLL:
    """Load the driver's library. Raises OSError if there is no driver."""
    return ctypes.CDLL("libcuda.so.1")
