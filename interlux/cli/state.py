"""What a running command writes to: text or one JSON object on stdout, errors and progress on stderr."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import Any, TextIO

from ..ir.errors import ResourceLimitError
from ..ir.text import escaped
from .signals import Signals


class State:
    """One run of the command.

    Arguments:
        json: whether stdout gets one JSON object instead of text.
        verbose: whether errors come with a traceback.
    """

    def __init__(self, json: bool = False, verbose: bool = False):
        self.json, self.verbose = json, verbose
        self.result: dict[str, Any] = {}  # what --json shows
        self._error: dict[str, Any] | None = None
        self.written: list[str] = []  # files that are in their place
        self.signals = Signals()
        self.has_stdout = sys.stdout is not None
        for number, name in ((1, "stdout"), (2, "stderr")):
            if getattr(sys, name) is None:  # closed by the caller (2>&-)
                setattr(sys, name, _nowhere(number))
        self._stdout: TextIO = sys.stdout

    def line(self, text: str = "") -> None:
        """Text for people. What comes from a model is escaped; several lines are given as several."""
        if not self.json:
            for part in text.split("\n"):
                try:
                    print(escaped(part), file=self._stdout)
                except BrokenPipeError:
                    raise
                except OSError as error:
                    raise ResourceLimitError(f"stdout cannot be written: {error.strerror}") from error

    def note(self, text: str) -> None:
        """What a person should know and a program finds in the JSON object under `notes`."""
        self.result.setdefault("notes", []).append(text)
        self.line(f"note: {text}")

    def fail(self, message: str, kind: str, items: tuple[str, ...]) -> None:
        """An error: one line on stderr, and with --json the object's `error`."""
        message = " ".join(message.split())  # one that quotes a framework may have several lines
        self._error = {"type": kind, "message": message} | ({"items": list(items)} if items else {})
        with suppress(OSError):
            print(escaped(f"interlux: {message}"), file=sys.stderr)

    def finish(self, code: int) -> None:
        if self.json:
            head: dict[str, Any] = {"ok": code == 0, "exit_code": code}
            if self._error is not None:
                head["error"] = self._error
            print(json.dumps(head | self.result, indent=1, allow_nan=False), file=self._stdout)
        self._stdout.flush()

    def drop_stdout(self) -> None:
        """Once the reader has gone, so that Python does not try to write the rest when it ends."""
        if (own := _descriptor(self._stdout)) is not None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, own)
            os.close(nowhere)

    @contextmanager
    def stdout_kept_clean(self) -> Iterator[None]:
        """With --json, what anything else prints goes to stderr: by Python, and by native code through descriptor 1."""
        if not self.json:
            yield
            return
        self._stdout.flush()
        own = _descriptor(self._stdout)
        with redirect_stdout(sys.stderr):
            if own != 1 or _descriptor(sys.stderr) is None:
                yield
                return
            saved = os.dup(1)
            try:
                os.dup2(2, 1)
                yield
            finally:
                os.dup2(saved, 1)
                os.close(saved)

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Around what puts files in their place: not begun after a signal, and not interrupted by one."""
        with self.signals.held():
            self.signals.check()
            yield

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Progress on stderr, when it is a terminal: what is being done, and then how long it took."""
        if not sys.stderr.isatty():
            yield
            self.signals.check()
            return
        from rich.console import Console
        from rich.text import Text

        console = Console(stderr=True, highlight=False)
        start = time.perf_counter()
        with console.status(Text(escaped(what))) if console.is_terminal else nullcontext():
            yield
            self.signals.check()
        took = f"{time.perf_counter() - start:.1f} s"
        console.print(Text.assemble((f"{took:>7}  ", "dim"), escaped(what)))


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, AttributeError, ValueError):
        return None


def _nowhere(number: int) -> TextIO:
    """A stream that drops everything. Its descriptor is taken, so that no file gets it and what others print."""
    taken = os.open(os.devnull, os.O_WRONLY)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(taken, number)
    if taken > 2:
        os.close(taken)
    return open(os.devnull, "w", encoding="utf-8")
