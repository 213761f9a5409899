"""The command `interlux`.

    __init__    main: exit codes, one-line errors, JSON, interruption
    app         the sub-commands and their options (click)
    state       what a running command writes to: stdout, JSON, progress on stderr
    signals     Ctrl-C, SIGTERM, SIGHUP
    sources     SRC: what can be opened
    targets     DST: what can be written, all or nothing
    places      where files go: checked early, written atomically
    arrays      .npz files
    backends    the names of the backends
    checks      which hops are verified
    text        tables
    commands    what the sub-commands do
    doctor      what is installed and works

A sub-command imports what it needs when it runs: `interlux --help` imports click and numpy, no framework.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from collections.abc import Sequence

from .signals import Stopped
from .state import State

OK, FAILED, USAGE, UNSUPPORTED, INVALID, RESOURCE, INTERNAL, BROKEN_PIPE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 70, 141, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Arguments:
        argv: the arguments without the program's name; None for those of the process.

    Returns:
        The exit code: 0 ok, 1 verification failed, 2 usage, 3 unsupported, 4 invalid or unsafe input, 5 resource limit,
        70 internal error, 130 interrupted (143 by SIGTERM, 129 by SIGHUP, 141 if the reader of stdout has gone).
    """
    import warnings

    from .app import Passed, interlux

    arguments = list(sys.argv[1:] if argv is None else argv)
    state = State(json="--json" in arguments, verbose="-v" in arguments or "--verbose" in arguments)
    if not state.has_stdout:  # nothing is done if its result could not be told
        state.fail("stdout is closed; use >/dev/null if the output is not wanted", "ResourceLimitError", ())
        return RESOURCE
    code = OK
    with warnings.catch_warnings(), state.stdout_kept_clean(), state.signals.handled():
        if not (state.verbose or sys.warnoptions):
            warnings.simplefilter("ignore")  # those of the frameworks, about themselves
        try:
            error: BaseException | None = None
            code = interlux.main(arguments, prog_name="interlux", standalone_mode=False, obj=state) or OK
        except Passed as passed:
            error = passed.error
        except BaseException as raised:  # noqa: BLE001  # the last place before the user: each becomes one line
            error = raised
        with state.signals.held():
            if state.signals.number is not None and not isinstance(error, Stopped):  # what else failed is its doing
                error = Stopped(state.signals.number)
            if error is not None:
                code = _report(state, error)
            if isinstance(error, Stopped) and argv is None:
                atexit.register(_leave, code)
    try:
        state.finish(code)
    except BrokenPipeError:
        state.drop_stdout()
        return BROKEN_PIPE
    except OSError as unwritable:
        state.drop_stdout()
        if code != BROKEN_PIPE:
            state.fail(f"stdout cannot be written: {unwritable.strerror}", "ResourceLimitError", ())
        return code or RESOURCE
    if code == BROKEN_PIPE:
        state.drop_stdout()
    return code


def _leave(code: int) -> None:
    """Ends the process before the frameworks are torn down: stopped in a computation, some crash there."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _report(state: State, error: BaseException) -> int:
    """One line on stderr (with -v after the traceback). Returns the exit code."""
    import click

    from ..ir.errors import InterluxError

    match error:
        case SystemExit(code=code):  # click's, after printing a completion script
            return code if isinstance(code, int) else OK if code is None else INVALID
        case BrokenPipeError():
            return BROKEN_PIPE
        case InterluxError():
            code, text = error.exit_code, str(error)
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else "interlux"
            text = error.format_message().rstrip(".")
            if text.startswith(("Missing ", "No such ", "Got ", "Invalid ", "Option ")):  # click's own
                text = text[:1].lower() + text[1:]
            code, text = USAGE, f"{text}; see '{command} --help'"
        case click.ClickException():
            code, text = USAGE, error.format_message()
        case KeyboardInterrupt() | Stopped():  # the former where signals are not handled, or of the user's own code
            code = error.exit_code if isinstance(error, Stopped) else INTERRUPTED
            written = ", ".join(state.written)
            text = f"{'interrupted' if code == INTERRUPTED else 'terminated'}; {written or 'nothing'} was written"
        case MemoryError():
            code, text = RESOURCE, "out of memory; use a machine with more, or a smaller model or batch"
        case RecursionError():
            code, text = RESOURCE, "the model is nested too deeply; flatten it where it was exported"
        case OSError(filename=name, strerror=reason) if reason:
            import errno

            code = RESOURCE if error.errno in (errno.ENOSPC, errno.EDQUOT) else INVALID
            text = f"{name}: {reason}" if name else reason
        case _:
            code = INTERNAL
            text = f"internal error: {type(error).__name__}: {error}"
            if not state.verbose:
                text += "; run again with -v for the traceback"
    if state.verbose:
        import traceback

        traceback.print_exception(error)
    state.fail(text, type(error).__name__, tuple(getattr(error, "items", ())))
    return code
