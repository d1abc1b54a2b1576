"""A part of a GPU's memory that several processes of a host see: CUDA's legacy IPC, as the driver has it.

https://docs.nvidia.com/cuda/cuda-driver-api, "Memory Management". Only memory of cuMemAlloc can be shared that way, so
not that of torch's expandable segments. Whether two processes may is found out by trying.
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
    """Of device memory, as this process sees it."""

    address: int
    num_bytes: int


def allocation_of(address: int) -> Allocation:
    """The allocation that this address is within. Raises OSError where there is none."""
    base, size = ctypes.c_uint64(), ctypes.c_size_t()
    _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), ctypes.c_uint64(address))
    return Allocation(base.value, size.value)


def export(allocation: Allocation) -> bytes:
    """A handle by which other processes open it, as long as it lives. Raises OSError where it cannot be shared."""
    handle = _Handle()
    _call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(allocation.address))
    return bytes(handle)


def open_handle(handle: bytes, device: torch.device) -> Allocation:
    """Another process's allocation, readable from `device` until `close`; opened again, it is where it was.

    Raises OSError where this process cannot have it.
    """
    _make_current(device)
    address = ctypes.c_uint64()
    _call("cuIpcOpenMemHandle_v2", ctypes.byref(address), _Handle.from_buffer_copy(handle), _LAZY_PEER_ACCESS)
    return allocation_of(address.value)


def close(allocation: Allocation, device: torch.device) -> None:
    """Once for each `open_handle`. Nothing may be reading it any more."""
    _make_current(device)
    _call("cuIpcCloseMemHandle", ctypes.c_uint64(allocation.address))


def _make_current(device: torch.device) -> None:
    """The device's context is that of this thread from now on."""
    torch.cuda.set_device(device)


def _call(name: str, *args: Any) -> None:
    error = getattr(_library(), name)(*args)
    if error:
        text = ctypes.c_char_p()
        _library().cuGetErrorString(error, ctypes.byref(text))
        raise OSError(error, f"{name}: {(text.value or b'unknown error').decode()}")


@cache
def _library() -> ctypes.CDLL:
    """Raises OSError where there is no driver."""
    return ctypes.CDLL("libcuda.so.1")
