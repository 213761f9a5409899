"""Functions by name: what `package.module:function` makes."""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Any

from ..ir.errors import InterluxError, InvalidModelError

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def names_function(text: str) -> bool:
    """Whether a text has the form `package.module:function`."""
    return _FORM.fullmatch(text) is not None


def call_function(text: str) -> tuple[Any, ModuleType]:
    """Calls `package.module:function` without arguments.

    Returns:
        what it returns, and the Python module that it is in.

    Raises InvalidModelError if there is no such function, or with what it raised.
    """
    if not names_function(text):
        raise InvalidModelError(f"{text!r} is not of the form package.module:function")
    where, _, attribute = text.partition(":")
    try:
        module = importlib.import_module(where)
        function: Any = module
        for part in attribute.split("."):
            function = getattr(function, part)
    except ModuleNotFoundError as error:
        raise InvalidModelError(f"{text}: there is no Python module {error.name!r}, or no file of that name") from error
    except AttributeError as error:
        raise InvalidModelError(f"{text}: {error}") from error
    except (InterluxError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise InvalidModelError(f"{text}: importing it raised {type(error).__name__}: {error}") from error
    if not callable(function):
        raise InvalidModelError(f"{text} is a {type(function).__name__}, a function was expected")
    try:
        return function(), module
    except (InterluxError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise InvalidModelError(f"{text}() raised {type(error).__name__}: {error}") from error
