"""The one family of errors that interlux raises on purpose.

Every message is one line that says what is wrong, where (in the source's own names) and what would work. The command
maps each class to an exit code (`exit_code`), so that a pipeline can tell them apart.
"""

from __future__ import annotations


class InterluxError(Exception):
    """Base of all errors that interlux raises on purpose."""

    exit_code = 4


class VerificationError(InterluxError):
    """A conversion ran, but its results differ from the source's, or could not be judged."""

    exit_code = 1


class UnsupportedError(InterluxError):
    """Something that interlux cannot convert, emit or run.

    Arguments:
        message: one line: what is unsupported and what would work.
        items: every offending operator or layer with its place in the source, one string each; appended to the message.
    """

    exit_code = 3

    def __init__(self, message: str, items: tuple[str, ...] | list[str] = ()):
        self.items = tuple(items)
        super().__init__(message + (": " + "; ".join(self.items) if self.items else ""))


class InvalidModelError(InterluxError, ValueError):
    """A model, an input or a parameter tree that contradicts itself or its signature."""


class UnsafeInputError(InterluxError):
    """A file that would run code, escape its folder, or expand beyond its bounds when read."""


class ResourceLimitError(InterluxError):
    """A limit on memory, time or size was reached."""

    exit_code = 5
