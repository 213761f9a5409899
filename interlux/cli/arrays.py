"""The .npz files of the command: arrays by name."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..ir.dtypes import dtype_named
from ..ir.errors import InvalidModelError
from ..ir.model import Signature


def read_npz(text: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file. Nothing in it is unpickled. Raises InvalidModelError if it is none."""
    from ..runtime.npz import read_npz as read

    if Path(text).is_file():
        with open(text, "rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise InvalidModelError(
                    f"{text} is a .npy file, one array without a name; write it with numpy.savez(file, name=array)"
                )
    return read(text)


def bound(signature: Signature, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Arrays in the order of a signature. What .npz cannot hold (bfloat16) is given in float32."""
    fitting = dict(arrays)
    for spec in signature.inputs:
        dtype = dtype_named(spec.dtype)
        if dtype.kind == "V" and spec.name in fitting and fitting[spec.name].dtype == np.float32:
            fitting[spec.name] = fitting[spec.name].astype(dtype)
    return signature.bind((), fitting)


def safe_names(names: Sequence[str]) -> list[str]:
    """Names fit for the members of an archive: a hostile model's could lead out of the folder it is unpacked to."""
    found: list[str] = []
    for name in names:
        safe = "".join(c if c.isprintable() and c not in "/\\:" else "_" for c in name)[:200]
        safe = "_" + safe if not safe or safe.startswith(".") else safe
        number = 2
        unique = safe
        while unique in found or (unique != name and unique in names):
            unique, number = f"{safe}_{number}", number + 1
        found.append(unique)
    return found


def npz(names: Sequence[str], arrays: Sequence[Any]) -> bytes:
    """Arrays as the bytes of an .npz file; bfloat16 and the like as float32, which holds them exactly."""
    stored = {n: a.astype(np.float32) if a.dtype.kind == "V" else a for n, a in zip(names, arrays, strict=True)}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # not numpy.savez: names like `file` are its own parameters
        for name, array in stored.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))  # same arrays, same bytes
            with archive.open(member, "w", force_zip64=True) as part:
                np.lib.format.write_array(part, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def summary(name: str, array: np.ndarray) -> dict[str, Any]:
    """Name, dtype, shape, least, mean and largest value; None where there is none that JSON can hold."""

    def number(value: Any) -> float | int | None:
        value = value.item()
        return value if not isinstance(value, float) or np.isfinite(value) else None

    about: dict[str, Any] = {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
    if not array.size or array.dtype.kind == "c":
        return about | {"min": None, "mean": None, "max": None}
    wide = array.astype(np.float64) if array.dtype.kind in "fV" else array
    exact = wide.astype(np.int64) if wide.dtype.kind == "b" else wide
    with np.errstate(all="ignore"):
        return about | {
            "min": number(exact.min()),
            "mean": number(exact.mean(dtype=np.float64)),
            "max": number(exact.max()),
        }
