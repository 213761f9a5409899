"""Arrays of mapped files."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from interlux.runtime.memory import ALIGNMENT, contiguous, release


def resident(array: np.ndarray) -> int:
    """Bytes in memory of the file that an array is mapped from."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    inside, total = False, 0
    for line in lines:
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, end = (int(part, 16) for part in first.split("-"))
            inside = begin <= array.ctypes.data < end
        elif inside and first == "Rss:":
            total += int(line.split()[1]) * 1024
    return total


def test_contiguous_copies_only_what_is_not() -> None:
    memory = np.zeros(10_000, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    fine = memory[start : start + 4096].view(np.float32).reshape(32, 32)
    assert contiguous(fine) is fine
    off = memory[start + 4 : start + 4 + 4096].view(np.float32).reshape(32, 32)
    off += np.arange(1024, dtype=np.float32).reshape(32, 32)
    for array in (off, off.T, off[::2, 1:], off[:0], off[3, 4]):
        array = np.asarray(array)
        made = contiguous(array)
        assert np.array_equal(made, array) and made.dtype == array.dtype and made.shape == array.shape
        assert made.flags.c_contiguous and (made.size == 0 or made.ctypes.data % ALIGNMENT == 0)


def test_released_pages_are_read_again(tmp_path: Path) -> None:
    expected = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32)
    path = tmp_path / "weights"
    path.write_bytes(expected.tobytes())
    with open(path, "rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.float32)
    weight = mapped.reshape(512, 512)
    assert np.array_equal(weight, expected.reshape(512, 512)) and resident(mapped) >= expected.nbytes
    release(weight[1:300].T)
    assert resident(mapped) < expected.nbytes // 2
    assert np.array_equal(weight, expected.reshape(512, 512))


def test_other_arrays_are_left_alone(tmp_path: Path) -> None:
    array = np.ones(100_000)
    release(array)
    assert array.all()
    path = tmp_path / "weights"
    path.write_bytes(bytes(1 << 20))
    with open(path, "r+b") as file:  # a private copy that has been written would be lost
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    mapped[:] = 1
    release(mapped)
    assert mapped.all()
