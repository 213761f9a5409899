"""SIGINT, SIGTERM and SIGHUP as exceptions, so that what is half written is removed."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_AFTER = 0.05  # seconds
STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(BaseException):
    """One of the signals.

    Arguments:
        number: which.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


class Signals:
    """Which signal came. An exception alone is not enough: where native code calls Python (a callback of JAX), Python
    prints and forgets it, or the framework makes an error of its own of it. In the first case it is raised again soon,
    in all others the command asks with `check`."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._held = 0
        self._active = False

    def check(self) -> None:
        """Raises Stopped if a signal came."""
        if self.number is not None:
            raise Stopped(self.number)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if not self._held:
            self.number = number
            raise Stopped(number)

    def _forgotten(self, unraisable: Any, before: Any) -> None:
        """Called by Python with exceptions that it cannot raise."""
        if not isinstance(unraisable.exc_value, Stopped):
            before(unraisable)
            return

        def again(number: int = unraisable.exc_value.number) -> None:
            if self._active:  # to the main thread, whose sleep or wait it ends
                signal.pthread_kill(threading.main_thread().ident or 0, number)

        timer = threading.Timer(AGAIN_AFTER, again)
        timer.daemon = True
        timer.start()

    @contextmanager
    def held(self) -> Iterator[None]:
        """For what takes no time and should not be left half done: signals that come meanwhile are too late."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Where signals can be handled: in a thread they stay as they were, and so do ignored ones (nohup)."""
        before = {}
        try:
            for number in STOPPING:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, self._came)
        except ValueError:  # a thread
            pass
        hook, self._active = sys.unraisablehook, True
        sys.unraisablehook = lambda unraisable: self._forgotten(unraisable, hook)
        try:
            yield
        finally:
            self._active = False
            sys.unraisablehook = hook
            for number, handler in before.items():
                signal.signal(number, handler)
