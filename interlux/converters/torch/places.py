"""Where in the user's module tree, and in which line, torch.export gave up."""

from __future__ import annotations

import linecache
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch

TORCH = os.path.dirname(torch.__file__) + os.sep
_OWN = os.path.dirname(__file__) + os.sep
_MODULES = os.path.join(TORCH, "nn", "modules", "")


@dataclass(frozen=True)
class Spot:
    """A place in a user's code.

    Arguments:
        modules: (path, class) of the modules whose forward was running, innermost first; the path of the root is "".
        file, line: of the innermost line that is not torch's own; "" and 0 if there is none.
    """

    modules: tuple[tuple[str, str], ...] = ()
    file: str = ""
    line: int = 0

    @property
    def source(self) -> str:
        """The line as file:line with its text."""
        if not self.line:
            return ""
        code = linecache.getline(self.file, self.line).strip()
        return short_file(self.file, self.line) + (f" `{code[:100]}`" if code else "")

    def __str__(self) -> str:
        path, name = self.modules[0] if self.modules else ("", "")
        return ", ".join(word for word in (f"{path} ({name})" if path else name, self.source) if word)


def class_name(module: torch.nn.Module) -> str:
    """The class of a module as its author named it."""
    name = getattr(module, "original_name", "") if isinstance(module, torch.jit.ScriptModule) else ""
    return name or type(module).__name__


def scripted(root: torch.nn.Module) -> dict[str, str]:
    """Path and class of each sub-module in TorchScript, without those inside another one."""
    found: dict[str, str] = {}
    for path, module in root.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if path and isinstance(module, torch.jit.RecursiveScriptModule) and not inside:
            found[path] = class_name(module)
    return found


def short_file(file: str, line: int) -> str:
    """file:line without the folders of this machine."""
    path = file.replace("\\", "/").rpartition("site-packages/")[2]
    if path.startswith("/") or ":" in path[:3]:
        path = "/".join(path.split("/")[-2:])
    return f"{path}:{line}"


def spot_of(error: BaseException, root: torch.nn.Module) -> Spot:
    """Where an error was raised while `root` was traced: the first in its chain of causes that passed through a
    forward; else the line that specialised a size."""
    chain = list(causes(error))
    for each in reversed(chain):
        spot = _spot_in([(frame, line) for frame, line in traceback.walk_tb(each.__traceback__)], root)
        if spot is not None and any(path for path, _ in spot.modules):
            return spot
    for each in chain:
        for frame, _ in traceback.walk_tb(each.__traceback__):
            found = _specialised(_first_argument(frame), root)
            if found is not None:
                return found
    return next((s for e in reversed(chain) if (s := _spot_in(list(traceback.walk_tb(e.__traceback__)), root))), Spot())


def caller(root: torch.nn.Module, frame: FrameType | None) -> Spot:
    """The place that called, from a frame outwards."""
    frames = [(each, line) for each, line in traceback.walk_stack(frame)]
    return _spot_in(frames[::-1], root) or Spot()


def note(found: dict[str, Spot], what: str, root: torch.nn.Module, frame: FrameType) -> None:
    """Keeps the place that called, from a frame outwards, under what it does; the first stays, and only it is looked
    for."""
    if what not in found:
        found[what] = caller(root, frame)


def _first_argument(frame: FrameType) -> Any:
    """`self`, whatever it is called."""
    return frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and what it was raised from."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _spot_in(frames: list[tuple[FrameType, int]], root: torch.nn.Module) -> Spot | None:
    """The innermost place in frames, outermost first; None if no module's forward is among them."""
    paths: dict[int, str] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        paths.setdefault(id(vars(module)), path)  # torch's stand-ins for shared modules have the same attributes
    modules: dict[tuple[str, str], None] = {}
    first = None
    for number, (frame, _) in enumerate(frames):
        module = _first_argument(frame)
        if frame.f_code.co_name == "forward" and isinstance(module, torch.nn.Module) and id(vars(module)) in paths:
            first = number if first is None else first
            here = (paths[id(vars(module))], class_name(module))
            modules.pop(here, None)
            modules[here] = None
    if first is None:
        return None
    lines = [(f.f_code.co_filename, n) for f, n in frames[first:] if not f.f_code.co_filename.startswith(_OWN)]
    user = [place for place in lines if not place[0].startswith(TORCH)]
    own = [place for place in lines if place[0].startswith(_MODULES)]
    file, line = (user or own or [("", 0)])[-1]
    return Spot(tuple(reversed(modules)), file, line)


def _specialised(environment: Any, root: torch.nn.Module) -> Spot | None:
    """The line that made a dynamic size a constant, of torch's record of guards; and the modules of that class."""
    guards = getattr(environment, "guards", None)
    if type(environment).__name__ != "ShapeEnv" or not isinstance(guards, list):
        return None
    for guard in reversed(guards):
        place = getattr(getattr(guard, "sloc", None), "framework_loc", None)
        file, line = getattr(place, "filename", ""), getattr(place, "lineno", 0)
        if not file or file.startswith((TORCH, _OWN)):
            continue
        modules = tuple(
            (path, class_name(module))
            for path, module in root.named_modules()
            if _contains(getattr(type(module).forward, "__code__", None), file, line)
        )
        if modules:
            return Spot(modules, file, line)
    return None


def _contains(code: CodeType | None, file: str, line: int) -> bool:
    if code is None or code.co_filename != file:
        return False
    lines = [n for _, _, n in code.co_lines() if n is not None]
    return code.co_firstlineno <= line <= max(lines, default=0)
