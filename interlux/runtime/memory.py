"""Where arrays lie in memory."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

ALIGNMENT = 64  # bytes; XLA takes an array on such an address as it is, and copies any other


def contiguous(array: np.ndarray) -> np.ndarray:
    """The array C-contiguous on an aligned address: itself if it is, or a copy."""
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    memory = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    result = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(result, array)
    return result


def release(array: np.ndarray) -> None:
    """Gives the pages of an array that is mapped from a file, read-only, back to the system; whoever reads it again
    has them read from the file again. Other arrays stay as they are."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if not isinstance(owner, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    whole = np.frombuffer(owner, np.uint8)
    if whole.flags.writeable or not (array.flags.c_contiguous or array.flags.f_contiguous):
        return
    begin = array.ctypes.data - whole.ctypes.data
    first, last = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE, (begin + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if last > first:  # pages that are shared with a neighbour stay
        owner.madvise(mmap.MADV_DONTNEED, first, last - first)
