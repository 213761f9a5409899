"""Reads .npz files: arrays by name, from files that need not be trusted."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib

import numpy as np

from ..ir.errors import InvalidModelError

# what numpy and zipfile raise for files that are damaged or none of theirs
_DAMAGED = (
    OSError, ValueError, EOFError, TypeError, AttributeError, KeyError, SyntaxError, NotImplementedError, RuntimeError,
    struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, in the byte order of this machine. Nothing in it is unpickled.

    Raises InvalidModelError if the file doesn't exist or is no sound .npz file.
    """
    text = os.fspath(path)
    if not os.path.isfile(text):
        raise InvalidModelError(f"{text}: there is no such file")
    try:
        with open(text, "rb") as opened:  # numpy itself leaves a damaged one open
            found = np.load(opened, allow_pickle=False)
            if isinstance(found, np.lib.npyio.NpzFile):
                return {name: _native(found[name]) for name in found.files}
    except _DAMAGED as error:
        # numpy's advice is to allow pickles
        reason = "it is another kind of file, or holds Python objects" if "pickle" in str(error) else error
        raise InvalidModelError(f"{text} cannot be read as .npz: {reason}; write it with numpy.savez") from error
    raise InvalidModelError(f"{text} holds one array without a name; write it with numpy.savez(file, name=array)")


def _native(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
