"""Compiled objects on disk, so that a model is compiled once on a machine.

    $INTERLUX_CACHE or the user's cache folder / interlux / fused / <key>.o

A file is a header (what it is, its key, a CRC of what follows, lengths), the facts that came with the object as JSON,
filled up with spaces, and the object, which begins at a multiple of 64 bytes. It is written to a temporary name and
renamed, so that readers and other writers see all of it or nothing. One that is damaged, cut off or of another key
counts as absent and is compiled again. The oldest files go when the folder has outgrown its bound.

An object is machine code that this process executes: a folder or file that others than its owner may write to, or that
belongs to somebody else, is not used.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .target import Target

LIMIT = 256 * 2**20  # bytes in the folder
_MAGIC = b"interlux fused object 1\n"
_HEADER = struct.Struct("<32sQQQ")  # key, CRC of what follows the header, bytes of facts and of the object
_ALIGNMENT = 64  # bytes: of the object in the file, and in memory when it was read
_START = len(_MAGIC) + _HEADER.size
_KEEP = 0.75  # of the limit, after old files have been removed
_REMEMBER = 60  # seconds; a file's time of use is written when it is older than that


@dataclass(frozen=True, eq=False)
class Cached:
    """A compiled object with the facts that were kept with it; `data` is uint8 at a multiple of 64 bytes."""

    data: np.ndarray
    facts: Mapping[str, Any]

    @property
    def object(self) -> bytes:
        return self.data.tobytes()


@functools.cache
def engine_version() -> str:
    """Changes whenever the layers or the generators do: the sizes and dates of their files."""
    digest = hashlib.sha256()
    own = Path(__file__).parent
    for folder in (own, own.parent.parent / "ir"):
        digest.update("".join(sorted(_dated(str(folder)))).encode())
    return digest.hexdigest()


def _dated(folder: str) -> Iterator[str]:
    """Each Python file in a folder with its size and date."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from (f"{entry.name}/{line}" for line in _dated(entry.path))
            elif entry.name.endswith(".py"):
                status = entry.stat()
                yield f"{entry.name} {status.st_size} {status.st_mtime_ns};"


def key_of(target: Target, *parts: str | bytes) -> bytes:
    """The key of an object.

    Arguments:
        target: what it is compiled for.
        parts: all that it follows from, beside the engine and LLVM: the IR, or the model's description and options.
    """
    from .llvm import binding

    llvm_version = ".".join(map(str, binding().llvm_version_info))
    digest = hashlib.sha256()
    for part in (engine_version(), llvm_version, repr(target), *parts):
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.digest()


def default_folder() -> Path | None:
    """Where objects are kept if the user says nothing; None if that is nowhere.

    INTERLUX_CACHE names another folder; empty switches the cache off.
    """
    chosen = os.environ.get("INTERLUX_CACHE")
    if chosen is not None:
        return Path(chosen) / "fused" if chosen else None
    if sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        return base.expanduser() / "interlux" / "fused"
    except RuntimeError:  # there is no home
        return None


class ObjectCache:
    """A folder of compiled objects. Nothing in here raises because of the file system: a cache may be absent."""

    def __init__(self, folder: Path | str | None = None, limit: int = LIMIT):
        """
        Arguments:
            folder: where; None is `default_folder()`.
            limit: bytes that all files may have together.
        """
        chosen = Path(folder) if folder is not None else default_folder()
        self.folder = chosen
        self.limit = limit

    def get(self, key: bytes) -> Cached | None:
        """The object of a key, None if there is none, or none that is whole."""
        if self.folder is None or not _is_private(self.folder, stat.S_ISDIR):
            return None
        path = self._path(key)
        if not _is_private(path, stat.S_ISREG):
            return None
        try:
            raw = _read(path)
        except OSError:
            return None
        cached = _parse(raw, key)
        if cached is None:
            with suppress(OSError):
                path.unlink()
        else:
            _touch(path)
        return cached

    def put(self, key: bytes, object: bytes, facts: Mapping[str, Any] | None = None) -> bool:
        """Keeps an object. Returns whether it could.

        Arguments:
            facts: what is to be known with it; plain values of JSON.
        """
        if self.folder is None:
            return False
        described = json.dumps(dict(facts or {}), sort_keys=True).encode()
        described += b" " * (-(_START + len(described)) % _ALIGNMENT)
        contents = described + object
        raw = _MAGIC + _HEADER.pack(key, zlib.crc32(contents), len(described), len(object)) + contents
        if len(raw) > self.limit:
            return False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _is_private(self.folder, stat.S_ISDIR):
                return False
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(raw)
                os.replace(temporary, self._path(key))
            except OSError:
                with suppress(OSError):
                    os.unlink(temporary)
                return False
        except OSError:
            return False
        self._shrink()
        return True

    def clear(self) -> None:
        """Removes all objects."""
        for path, _ in self._files():
            with suppress(OSError):
                path.unlink()

    def _path(self, key: bytes) -> Path:
        return Path(self.folder or "") / f"{key.hex()}.o"

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        """All files of the cache, those of writers that died included."""
        found = []
        with suppress(OSError), os.scandir(self.folder or "") as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.name.endswith((".o", ".tmp")):
                        found.append((Path(entry.path), entry.stat(follow_symlinks=False)))
        return found

    def _shrink(self) -> None:
        """Removes the files that were not used for longest until there is room again."""
        files = self._files()
        total = sum(status.st_size for _, status in files)
        if total <= self.limit:
            return
        for path, status in _oldest_first(files):
            with suppress(OSError):
                path.unlink()
                total -= status.st_size
            if total <= self.limit * _KEEP:
                break


def _oldest_first(files: Iterable[tuple[Path, os.stat_result]]) -> list[tuple[Path, os.stat_result]]:
    return sorted(files, key=lambda file: file[1].st_mtime_ns)


def _read(path: Path) -> np.ndarray:
    """The bytes of a file at a multiple of the alignment."""
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        room = np.empty(size + _ALIGNMENT, np.uint8)
        start = -room.ctypes.data % _ALIGNMENT
        raw = room[start : start + size]
        done = 0
        while done < size and (count := file.readinto(raw[done:].data)):
            done += count
    return raw[:done]


def _parse(raw: np.ndarray, key: bytes) -> Cached | None:
    """The contents of a file, None unless they are whole and of that key."""
    if raw.size < _START or raw[: len(_MAGIC)].tobytes() != _MAGIC:
        return None
    found, checksum, described, size = _HEADER.unpack_from(raw.data, len(_MAGIC))
    contents = raw[_START:]
    if found != key or contents.size != described + size or zlib.crc32(contents.data) != checksum:
        return None
    return Cached(contents[described:], json.loads(contents[:described].tobytes()))


def _is_private(path: Path, kind: Any) -> bool:
    """Whether a file or folder is of that kind (no link), this user's, and written by nobody else."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return kind(status.st_mode) and own and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _touch(path: Path) -> None:
    """Notes that a file was used."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _REMEMBER:
            os.utime(path)
