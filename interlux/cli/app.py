"""The sub-commands and their options."""

from __future__ import annotations

from typing import Any

import click

from .backends import BACKENDS
from .state import State

LATER = "(not in this version)"


class Passed(BaseException):
    """Carries an exception past click, which would print an empty line at Ctrl-C, and exit with 1 at a closed pipe."""

    def __init__(self, error: BaseException):
        self.error = error


class Commands(click.Group):
    """Sub-commands in the order of their definition."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:  # prints --help
        try:
            return super().make_context(*args, **extra)
        except OSError as error:
            raise Passed(error) from error

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            raise Passed(error) from error
        except SystemExit as error:  # nothing here raises it, so that it is the model's own code
            from ..ir.errors import InvalidModelError

            stopped = InvalidModelError(f"the model's own code called sys.exit({error.code!r}); it must not do that")
            raise Passed(stopped) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class Backends(click.ParamType):
    """Names of backends with commas."""

    name = "backends"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(dict.fromkeys(part.strip() for part in str(value).split(",")))
        for name in names:
            if name not in BACKENDS:
                self.fail(f"there is no backend {name!r}; choose from {','.join(BACKENDS)}", param, ctx)
        return names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(name) for name in (*BACKENDS, ",".join(BACKENDS)) if name.startswith(incomplete)]


def _verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(State).verbose = True


def _json(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(State).json = True


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from .. import __version__

        ctx.ensure_object(State).result["version"] = __version__
        ctx.ensure_object(State).line(f"interlux {__version__}")
        ctx.exit()


verbose = click.option(
    "-v", "--verbose", is_flag=True, expose_value=False, callback=_verbose, help="Show tracebacks and warnings."
)
as_json = click.option(
    "--json", is_flag=True, expose_value=False, callback=_json, help="One JSON object on stdout, nothing else."
)
report = click.option("--report", metavar="FILE.html", help="Write the verification report there, also when it failed.")
backend = click.option(
    "--backend",
    "backends",
    type=Backends(),
    metavar="NAMES",
    help="Of jax,onnxruntime,fused; by default the first two, if installed.",
)
inputs = click.option("--inputs", metavar="FILE.npz", help="Compare on these arrays, not on generated ones.")
arch = click.option(
    "--arch", metavar="MODULE:FUNCTION", help="What makes the network that a .pt or .safetensors file has weights for."
)
trust = click.option(
    "--trust", is_flag=True, help="Load a .pt file that holds a whole pickled module: runs code that is in the file."
)
example = click.option(
    "--input",
    "examples",
    multiple=True,
    metavar="NAME=DTYPE[SHAPE]",
    help="An input of a PyTorch module, e.g. 'images=float32[batch,1,32,32]'; sizes with a name are dynamic.",
)


def common(function: Any) -> Any:
    return click.pass_obj(as_json(verbose(function)))


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version and exit."
)
@as_json
@verbose
@click.pass_context
def interlux(ctx: click.Context) -> int | None:
    """Moves trained neural networks between frameworks and proves that nothing was lost on the way.

    SRC is a .onnx or .pt2 file, a .pt, .bin or .safetensors file with --arch, the folder of a saved interlux model, or
    MODULE:FUNCTION, a Python function that returns a PyTorch module or (module, example inputs).

    Exit codes: 0 ok, 1 verification failed, 2 usage, 3 unsupported, 4 invalid or unsafe input, 5 resource limit,
    70 internal error, 130 interrupted (143 by SIGTERM, 129 by SIGHUP).
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        return 2
    return None


@interlux.command()
@click.argument("src")
@click.argument("dst")
@click.option("--opset", type=int, help="Version of ai.onnx to write; by default 20, or what the model needs.")
@backend
@click.option("--no-verify", is_flag=True, help="Write without comparing with the source.")
@inputs
@arch
@trust
@example
@click.option("--name", help="Name of the model; by default the file's or the class's.")
@report
@common
def convert(state: State, **options: Any) -> None:
    """Convert SRC to DST, verify it, and write it only if that passed.

    DST is a .onnx file, a folder (a saved interlux model: a path without an ending, or with a final /), or a
    .safetensors file with the weights. What is written is read again and compared with the source, number by number.
    """
    from .commands import convert as run

    run(state, **options)


@interlux.command()
@click.argument("a")
@click.argument("b", required=False)
@backend
@inputs
@arch
@trust
@example
@report
@common
def verify(state: State, **options: Any) -> None:
    """Compare A with what interlux makes of it, or with B.

    A alone is imported, and the result is compared with A on the backends. With B (a .onnx or .pt2 file or a saved
    model), B itself and its import on the backends are compared with A. The reference is A computed in float64.
    """
    from .commands import verify as run

    run(state, **options)


@interlux.command()
@click.argument("src")
@arch
@trust
@example
@common
def inspect(state: State, **options: Any) -> None:
    """Show a model: inputs, outputs, layers, shapes, counts."""
    from .commands import inspect as run

    run(state, **options)


@interlux.command("run")
@click.argument("src")
@click.option("--input", "arrays", required=True, metavar="FILE.npz", help="The inputs, by name.")
@click.option("--output", metavar="FILE.npz", help="Write the outputs there, by name.")
@click.option("--backend", type=click.Choice(list(BACKENDS)), help="By default jax if installed.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@arch
@trust
@common
def run_(state: State, **options: Any) -> None:
    """Run a model on arrays from an .npz file."""
    from .commands import run

    run(state, **options)


@interlux.command(short_help="Show what is installed and works, and what is missing.")
@common
def doctor(state: State) -> None:
    """Show what is installed, which backends and devices work, and how to get what is missing."""
    from .doctor import doctor as run

    run(state)


def _later(name: str, what: str, instead: str) -> None:
    text = f"{what} {LATER}"

    @interlux.command(name, help=text, short_help=text, context_settings={"ignore_unknown_options": True})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    @common
    def command(state: State, arguments: tuple[str, ...]) -> None:
        from ..ir.errors import UnsupportedError

        raise UnsupportedError(f"'interlux {name}' is not part of this version; {instead}")


_later("bisect", "Find the layer in which A and B differ", "'interlux verify A B' tells whether they differ")
_later("bench", "Time a model on each backend", "time the function that ix.compile(model) returns")
_later("bundle", "Write a folder for deployment", "use 'interlux convert SRC model.onnx'")
