"""The description of a native function in memory, which all generated callers read."""

from __future__ import annotations

import ctypes

SIZES = 16  # of batches that threads are judged by: powers of 2 times the smallest that may be split
ARENAS = 8  # arenas that are kept for the next calls: as many threads as compute at once without asking for memory

_free = ctypes.CDLL(None).free


class Port(ctypes.Structure):
    """An input or output: its dtype object, rank, pointer to the shape (the first entry, the batch, is not read),
    bytes per sample, and XLA's number of the dtype."""

    _fields_ = [
        ("dtype", ctypes.c_void_p),
        ("ndim", ctypes.c_int64),
        ("shape", ctypes.c_void_p),
        ("bytes", ctypes.c_int64),
        ("xla_type", ctypes.c_int64),
    ]


class History(ctypes.Structure):
    """What was measured of batches of about one size.

    alone: time per sample in one thread, in nanoseconds · 1024.
    account: nanoseconds that threads have saved so far.
    resting: 1 if one thread is used until the account is level again.
    calls: their number.
    """

    _fields_ = [
        ("alone", ctypes.c_int64),
        ("account", ctypes.c_int64),
        ("resting", ctypes.c_int64),
        ("calls", ctypes.c_int64),
    ]


class Call(ctypes.Structure):
    """A native function with its parameters, and when what pays.

    run, parameters: addresses; `blob` bytes of parameters.
    arena: bytes of scratch memory.
    inputs, outputs: how many; their `Port`s lie at `ports`, inputs first.
    slow: the Python function that takes over where the entry does not understand its arguments.
    out: the string "out".
    smallest, largest: batches that the model takes.
    release_from: the batch from which Python's lock is released.
    split_from: the batch from which at most `threads` threads may be used, on chunks of `chunk` samples.
    pool: of threads.
    history: of batches from `split_from` on, by size.
    arenas: that are not in use.
    """

    _fields_ = [
        ("run", ctypes.c_void_p),
        ("parameters", ctypes.c_void_p),
        ("blob", ctypes.c_int64),
        ("arena", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("ports", ctypes.POINTER(Port)),
        ("slow", ctypes.py_object),
        ("out", ctypes.py_object),
        ("smallest", ctypes.c_int64),
        ("largest", ctypes.c_int64),
        ("release_from", ctypes.c_int64),
        ("split_from", ctypes.c_int64),
        ("chunk", ctypes.c_int64),
        ("threads", ctypes.c_int64),
        ("pool", ctypes.c_void_p),
        ("history", History * SIZES),
        ("arenas", ctypes.c_void_p * ARENAS),
    ]

    def __del__(self) -> None:
        for arena in self.arenas:
            if arena:
                _free(ctypes.c_void_p(arena))


def at(name: str) -> int:
    """The byte offset of a field of `Call`."""
    return int(getattr(Call, name).offset)


def port_at(name: str) -> int:
    """The byte offset of a field of `Port`."""
    return int(getattr(Port, name).offset)


def history_at(name: str) -> int:
    """The byte offset of a field of `History`."""
    return int(getattr(History, name).offset)


PORT_BYTES = ctypes.sizeof(Port)
