"""DST: what can be written. All of it or nothing: in a temporary folder beside it, read again, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from click import UsageError

from ..api import needs
from ..ir import trees
from ..ir.errors import InvalidModelError, UnsupportedError, VerificationError
from ..ir.model import Model
from .places import check_place, placed, staging
from .state import State

ONNX, FOLDER, WEIGHTS = "onnx", "folder", "safetensors"
WRITTEN = ".onnx, a folder (a path without an ending, or with a final /), .safetensors (the weights)"


@dataclass(frozen=True)
class Target:
    """Where a model goes and in which form.

    Arguments:
        path: the file or folder.
        kind: onnx | folder | safetensors.
        opset: for ONNX, None for the default.
    """

    path: Path
    kind: str
    opset: int | None = None

    @classmethod
    def of(cls, text: str, opset: int | None) -> Target:
        """The target that DST means. Raises an error early for what would fail after a long verification."""
        if not text.strip():
            raise UsageError("DST is empty; give the path of a file or folder")
        path = Path(text)
        ending = path.suffix.lower()
        if text.endswith(("/", os.sep)) or not ending or (path / "model.json").is_file():
            kind = FOLDER
        elif ending == ".onnx":
            kind = ONNX
        elif ending == ".safetensors":
            kind = WEIGHTS
        else:
            raise UnsupportedError(f"{text}: files with the ending {ending!r} cannot be written; what can: {WRITTEN}")
        if opset is not None and kind != ONNX:
            raise UnsupportedError(f"--opset is for .onnx files, {text} is none")
        check_place(text)
        if kind == FOLDER:
            saved = (path / "model.json").is_file()
            if path.exists() and not saved and (not path.is_dir() or any(path.iterdir())):
                raise InvalidModelError(f"{text} exists and is not a saved model; choose another folder or remove it")
        elif path.is_dir():
            raise InvalidModelError(f"{text} is a folder, a file is to be written")
        return cls(path, kind, opset)

    @contextmanager
    def staged(self, model: Model, state: State) -> Iterator[Staged]:
        """Writes a model beside the target. On leaving, what was not committed is gone."""
        with staging(self.path, state.signals) as folder:
            staged = Staged(self, folder / self.path.name)
            staged.write(model)
            yield staged


@dataclass(frozen=True)
class Staged:
    """A model as written in the temporary folder."""

    target: Target
    path: Path

    def write(self, model: Model) -> None:
        if self.target.kind == ONNX:
            with needs("onnx"):
                from ..runtime.onnx import to_onnx
            to_onnx(model, self.path, self.target.opset)
        elif self.target.kind == FOLDER:
            from ..ir.storage import save

            save(model, self.path)
        else:
            _write_weights(model, self.path)

    def check(self, model: Model) -> dict[str, Any]:
        """Reads what was written again, and returns what there is to say about it.

        Raises VerificationError if it is not the model. How an ONNX file computes is verified apart from this.
        """
        about: dict[str, Any] = {"kind": self.target.kind}
        if self.target.kind == ONNX:
            about["opset"] = _checked_opset(self.path)
        elif self.target.kind == FOLDER:
            _check_same(model, self.path)
        else:
            _check_weights(model, self.path)
        files = [p for p in (self.path.rglob("*") if self.path.is_dir() else self.path.parent.iterdir()) if p.is_file()]
        return about | {"bytes": sum(p.stat().st_size for p in files)}

    def commit(self) -> None:
        """Renames what was written to its place, the file that others refer to last."""
        with placed(self.target.path):
            self._rename(self.target.path)

    def _rename(self, final: Path) -> None:
        if self.target.kind == FOLDER:
            old = self.path.parent / "old"
            if final.exists():
                os.replace(final, old)
            try:
                os.replace(self.path, final)
            except BaseException:
                if old.exists():
                    os.replace(old, final)
                raise
            return
        for part in self.path.parent.iterdir():
            if part != self.path:  # external data
                os.replace(part, final.parent / part.name)
        os.replace(self.path, final)


def _checked_opset(path: Path) -> int:
    import onnx

    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise VerificationError(f"the written file is not valid ONNX: {error}") from error
    proto = onnx.load(str(path), load_external_data=False)
    return next(int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def _check_same(model: Model, path: Path) -> None:
    from ..ir.storage import load

    again = load(path)
    if (again.layer, again.signature, dict(again.aliases)) != (model.layer, model.signature, dict(model.aliases)):
        raise VerificationError("the saved model, read again, differs from the one that was saved")
    for before, after in ((model.params, again.params), (model.states, again.states)):
        old, new = (dict(trees.leaves(tree)) for tree in (before, after))
        different = [p for p in old.keys() | new.keys() if p not in old or p not in new or not _equal(old[p], new[p])]
        if different:
            raise VerificationError(f"{trees.name_of(different[0])!r}, read again, differs from what was saved")


def _weights(model: Model) -> dict[str, np.ndarray]:
    """The weights by name: those of the state_dict of a model from PyTorch, else all parameters and states."""
    names = model.metadata.get("state_dict")
    paths = (
        [trees.path_of(name) for name in names]
        if names is not None
        else [path for tree in (model.params, model.states) for path, _ in trees.leaves(tree)]
    )
    return {trees.name_of(path): np.require(model.array(path), requirements="C") for path in paths}


def _write_weights(model: Model, path: Path) -> None:
    from safetensors.numpy import save_file

    # "pt": without it transformers refuses the file
    metadata = {"format": "pt"} if model.metadata.get("source") == "torch" else None
    save_file(_weights(model), str(path), metadata=metadata)


def _check_weights(model: Model, path: Path) -> None:
    from safetensors.numpy import load_file

    wanted, found = _weights(model), load_file(str(path))
    different = [n for n in wanted.keys() | found.keys() if n not in found or not _equal(wanted.get(n), found[n])]
    if different:
        raise VerificationError(f"{different[0]!r}, read again, differs from what was written")


def _equal(a: Any, b: Any) -> bool:
    return a is not None and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
