"""What all compiled models share: they are called like the source, with numpy in and a tuple of numpy out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np

from ..ir import trees
from ..ir.errors import InterluxError, InvalidModelError, ResourceLimitError, UnsupportedError
from ..ir.model import Model


class Runner:
    """A model compiled for one backend and device, in evaluation mode.

    Call it with the inputs by position, by name, or nested as the source takes them; dtypes, shapes and the ranges of
    dynamic dimensions are checked. Returns the tuple of outputs.
    """

    backend: ClassVar[str]

    def __init__(self, model: Model, device: str):
        self.signature = model.require_signature()
        self.device = device

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[np.ndarray, ...]:
        return self.run(self.signature.bind(args, kwargs))

    def run(self, arrays: list[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Runs on checked input arrays in the order of the signature."""
        raise NotImplementedError


def refuse_written_states(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises UnsupportedError if evaluation wrote to states, which a compiled model would silently lose."""
    written = [trees.name_of(path) for path in trees.changed(old, new)]
    if written:
        raise UnsupportedError(
            "the model writes to its states in evaluation too, a compiled or exported model keeps none; "
            "use layer.apply, which returns them",
            written,
        )


@contextmanager
def run_in(backend: str) -> Iterator[None]:
    """Turns a backend's own exceptions into one-line errors."""
    try:
        yield
    except InterluxError:
        raise
    except MemoryError as error:
        raise ResourceLimitError(f"{backend} ran out of memory: {first_line(error)}") from error
    except KeyError as error:
        raise InvalidModelError(f"{backend} cannot run the model: there is no array {error}") from error
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InvalidModelError(f"{backend} cannot run the model: {first_line(error)}") from error


_QUOTED = re.compile(r"^(?:[\w.]+\.)?(?:InvalidModelError|UnsupportedError): (.+)$", re.MULTILINE)


def first_line(error: BaseException) -> str:
    """What an error says, in one line; of an error of interlux inside a callback, which a backend quotes, that one."""
    quoted = _QUOTED.search(str(error))
    if quoted is not None:
        return quoted[1]
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
