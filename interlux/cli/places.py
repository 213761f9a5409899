"""Where files go: what would fail after a long run is noticed before it, and a file is there whole or not at all."""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from click import UsageError

from ..ir.errors import InterluxError, InvalidModelError, ResourceLimitError
from .signals import Signals

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)


def check_place(text: str) -> None:
    """Raises InvalidModelError if nothing can be written to a path. Folders that are missing are made later."""
    path = Path(text)
    try:
        if path.exists() and not path.is_dir() and not path.is_file():
            raise InvalidModelError(f"{text} is a device or the like; give the path of a file")
        with tempfile.TemporaryDirectory(prefix=_prefix(path), dir=_existing(path)):
            pass
    except OSError as error:
        raise _unwritable(path, error) from error


def check_file(option: str, text: str) -> None:
    """As `check_place`, for an option that is a file."""
    if not text.strip():
        raise UsageError(f"{option} is empty; give the path of a file")
    if text.endswith("/") or Path(text).is_dir():
        raise InvalidModelError(f"{text}: {option} cannot be written there, it is a folder; give the path of a file")
    check_place(text)


def check_distinct(written: Mapping[str, str | None], read: Mapping[str, str | None]) -> None:
    """Raises UsageError if what is written would overwrite what is read, or something else that is written.

    Arguments:
        written, read: paths by what the user calls them.
    """
    done: list[tuple[str, Path]] = [(name, Path(text)) for name, text in read.items() if text and _is_there(text)]
    for name, text in written.items():
        if not text:
            continue
        path = Path(text)
        for other, taken in done:
            if _same(path, taken) or (taken.is_dir() and _inside(path, taken)):
                raise UsageError(f"{name} {text} would overwrite {other} {taken}; choose another path")
            if other == "DST" and _inside(path, taken):
                raise UsageError(f"{name} {text} lies in {other} {taken}; choose another path")
        done.append((name, path))


@contextmanager
def staging(path: Path, signals: Signals | None = None) -> Iterator[Path]:
    """A temporary folder from which a rename to a path works. On leaving, it is gone."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=_existing(path)))
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        yield folder
    finally:
        with (signals or Signals()).held():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def placed(path: Path) -> Iterator[None]:
    """Makes the folders that a path lacks; if what follows fails, they are removed again."""
    made: list[Path] = []
    try:
        for folder in reversed([path.absolute(), *path.absolute().parents][1:]):
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
        yield
    except BaseException as error:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise _unwritable(path, error) from error
        raise


def write_atomically(path: Path, content: bytes | str) -> None:
    """A file, all of it or nothing."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with staging(path) as folder:
        part = folder / path.name
        try:
            part.write_bytes(data)
        except OSError as error:
            raise _unwritable(path, error) from error
        with placed(path):
            part.replace(path)


def _existing(path: Path) -> Path:
    """The innermost folder above a path that is there."""
    folder = next(p for p in path.absolute().parents if p.exists() or p.is_symlink())
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is no folder", str(path))
    return folder


def _prefix(path: Path) -> str:
    return f".{path.name[:40]}-"


def _unwritable(path: Path, error: OSError) -> InterluxError:
    kind = ResourceLimitError if error.errno in _FULL else InvalidModelError
    return kind(f"{path}: this cannot be written: {error.strerror or error}")


def _is_there(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:
        return False


def _same(a: Path, b: Path) -> bool:
    try:
        return a.resolve() == b.resolve() or (a.exists() and b.exists() and a.samefile(b))
    except OSError:
        return False


def _inside(path: Path, folder: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except OSError:
        return False
