"""Plans compiled and called: machine code, its memory, and the threads."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import numpy as np

from ..cache import ObjectCache, key_of
from ..entry import aligned
from ..llvm import Library, assemble, load
from ..native import library as callers
from ..native import pool
from ..target import Target
from .code import Code, Plan, arena_size, generate
from .context import Context, function_at

_CACHE = 1 << 19  # bytes: a tile should stay in a core's second cache
_MOST = 8  # vectors in a tile
_SMALL = 1 << 18  # bytes of gradients with a number for each lane
_MANY = 4  # tiles of a chunk for which these pay


def sized(plan: Plan, target: Target, batch: int, threads: int) -> Plan:
    """A plan with the tile for batches of about a size: few vectors of samples for small batches and large networks.

    Where there are many tiles of a small network, gradients have a number for each lane.
    """
    lanes = target.lanes(plan.tape.dtype)
    bytes_ = plan.tape.dtype.itemsize
    size = arena_size(plan) * lanes * bytes_
    vectors = 1
    while vectors < _MOST and 2 * vectors * size <= _CACHE and 2 * vectors * lanes * threads <= max(batch, 1):
        vectors *= 2
    tiles = batch // (vectors * lanes * threads)
    by_lane = lanes > 1 and tiles >= _MANY and plan.count * lanes * bytes_ <= _SMALL
    return replace(plan, vectors=vectors, by_lane=by_lane)


class Compiled:
    """A plan's machine code."""

    def __init__(self, plan: Plan, target: Target):
        self.plan = plan
        self.stride = plan.stride(target.lanes(plan.tape.dtype))
        self.code: Code = generate(plan, target)
        objects, key = ObjectCache(), key_of(target, "training", self.code.text)
        found = objects.get(key)
        binary = assemble(self.code.text, target) if found is None else found.object
        if found is None:
            objects.put(key, binary)
        functions = ["gradients"] if plan.optimizer is None else ["gradients", "train"]
        self.library: Library = load(binary, functions)
        self.gradients = function_at(self.library.address("gradients"), ctypes.c_void_p)
        if plan.optimizer is not None:
            self.train = function_at(self.library.address("train"), ctypes.c_void_p, ctypes.c_int64)
        self._constants = aligned(self.code.parameters if self.code.parameters.size else np.zeros(64, np.uint8))
        self._room: np.ndarray = np.zeros(0, np.uint8)
        self._memory: dict[str, np.ndarray] = {}
        self._chunks = 0  # for which that has room

    def prepare(self, context: Context, batch: int, threads: int) -> None:
        """Memory for batches of at most `batch` samples, and threads; writes them into the context."""
        tiles = max(1, -(-batch // self.code.tile))
        chunks = max(1, min(threads, tiles))
        bytes_ = self.code.arena * (tiles if self.code.by_tile else chunks)
        if self._room.size < bytes_:
            self._room = allocated(bytes_, np.uint8)
        dtype = self.plan.tape.dtype
        if chunks > self._chunks:
            self._chunks = chunks
            self._memory = {
                "gradients": allocated(chunks * self.stride, dtype),
                "sums": allocated(chunks * (self.plan.tape.sums + 1), np.float64),
            }
        context["arena"] = self._room
        context["parameters"] = self._constants
        context["gradients"] = self._memory["gradients"]
        context["sums"] = self._memory["sums"]
        context["chunks"] = chunks
        context["threads"] = chunks
        if chunks > 1:
            threads_ = pool()
            threads_.grow(chunks)
            context["pool"] = threads_.address
            context["pool_run"] = callers().address("pool_run")

    def summed(self, chunks: int) -> np.ndarray:
        """The chunks' gradients added up in their order."""
        parts = self._memory["gradients"][: chunks * self.stride].reshape(chunks, -1)
        total = parts[0].copy()
        for part in parts[1:]:
            total += part
        return total[: self.plan.tape.trained]

    def loss(self, chunks: int) -> float:
        stride = self.plan.tape.sums + 1
        return float(sum(self._memory["sums"][chunk * stride] for chunk in range(chunks)))


def allocated(count: int, dtype: Any) -> np.ndarray:
    """Zeros at a multiple of 64 bytes."""
    size = max(1, count) * np.dtype(dtype).itemsize
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    array: np.ndarray = room[start : start + size].view(dtype)[:count]
    return array
