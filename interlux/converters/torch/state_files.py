"""Files of weights (.safetensors; .pt, .pth and .bin of torch.save), put into the network that they are for."""

from __future__ import annotations

import os
import pickle
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ...ir.errors import InvalidModelError, UnsafeInputError, UnsupportedError
from ..archive import read_archive, shown
from ..functions import call_function

SAFETENSORS, PICKLED = ".safetensors", (".pt", ".pth", ".bin")
MOST_NAMED = 10  # keys in one error
_INSIDE = ("state_dict", "model_state_dict", "model")  # where checkpoints keep a state_dict
_DAMAGED = (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError)

Path = str | os.PathLike[str]
State = dict[str, torch.Tensor]


def is_weight_file(path: Path) -> bool:
    return _ending(path) in (SAFETENSORS, *PICKLED)


Notes = tuple[str, ...]


def module_from_file(path: Path, arch: str | Callable[[], Any] | None, trust: bool = False) -> tuple[Any, Any, Notes]:
    """A network with the weights of a file.

    Arguments:
        path: of the file.
        arch: what makes the network: a function without arguments, or "package.module:function"; None if the file holds
            a whole pickled module.
        trust: whether the file may hold pickled objects other than tensors. Loading them runs code that is in it.

    Returns:
        the module; example inputs if `arch` makes (module, example inputs), else None; notes about the weights.

    Raises InvalidModelError if the weights don't fit the network or the file is damaged, UnsafeInputError if loading it
    would run code.
    """
    if arch is None:
        content = _unpickled(path, trust) if _ending(path) != SAFETENSORS else None
        if isinstance(content, torch.nn.Module):
            return content, None, ()
        raise InvalidModelError(
            f"{_name(path)} holds weights only: say with arch= what makes the network, a function or "
            "'package.module:function'"
        )
    if isinstance(arch, str):
        made: Any = call_function(arch)[0]
        label = arch
    else:
        made, label = arch(), getattr(arch, "__name__", "arch")
    module, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    filled_module, notes = filled(module, read_state_dict(path, trust), label, path)
    return filled_module, inputs, notes


def filled(module: Any, state: State, arch: str, path: Path) -> tuple[torch.nn.Module, Notes]:
    """The module that an architecture made, with weights in the dtypes of their file; and what was done to these.

    Arguments:
        module: what the architecture made.
        arch, path: names for errors.

    Raises InvalidModelError with all keys that are missing, unexpected, or of another shape.
    """
    if not isinstance(module, torch.nn.Module):
        raise InvalidModelError(f"{arch} returned a {type(module).__name__}, a torch.nn.Module was expected")
    own: dict[str, Any] = {
        key: value for key, value in module.state_dict(keep_vars=True).items() if isinstance(value, torch.Tensor)
    }
    state, prefix = _without_wrappers(own, state)
    state = _with_tied(own, state, arch, path)
    problems: list[tuple[str, Iterable[str]]] = []
    failure = ""
    try:
        # assigned, not copied: copying would round to the dtypes that the architecture happens to have
        missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
    except (RuntimeError, AttributeError, TypeError) as error:
        failure = " ".join(str(error).split())[:300]
        missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    shapes = [
        f"{key} {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes if failure else [])]
    said = "; ".join(f"{what}: {_listed(keys)}" for what, keys in problems if keys)
    if said or failure:
        raise InvalidModelError(f"{_name(path)} does not fit the network of {arch}: {said or failure}")
    return module, (f"the names in {_name(path)} begin with {prefix!r}, which was left out",) if prefix else ()


_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def _without_wrappers(own: Mapping[str, torch.Tensor], state: State) -> tuple[State, str]:
    """The weights without the prefix of modules that wrapped the network, if their names are its own then; and that
    prefix."""
    plain, whole = state, ""
    while plain.keys() != own.keys():
        prefix = next((p for p in _WRAPPERS if plain and all(key.startswith(p) for key in plain)), None)
        if prefix is None:
            break
        plain, whole = {key.removeprefix(prefix): value for key, value in plain.items()}, whole + prefix
    return (plain, whole) if plain.keys() <= own.keys() else (state, "")


def _with_tied(own: Mapping[str, torch.Tensor], state: State, arch: str, path: Path) -> State:
    """The weights with those that the file leaves out because they are another one of its own by a second name."""
    groups: dict[int, list[str]] = {}
    for key, value in own.items():
        groups.setdefault(id(value), []).append(key)
    whole = dict(state)
    for keys in groups.values():
        there = [key for key in keys if key in state]
        for key in keys if there else ():
            if key not in state:
                whole[key] = state[there[0]]
            elif not _equal(state[key], state[there[0]]):
                raise InvalidModelError(
                    f"{_name(path)} does not fit the network of {arch}: {there[0]} and {key} are one tensor there and "
                    "differ in the file"
                )
            else:
                whole[key] = state[there[0]]  # one tensor again
    return whole


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    same = a.dtype == b.dtype and a.shape == b.shape
    return a is b or (same and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)))


def _listed(keys: Iterable[str]) -> str:
    names = [shown(key)[1:-1] for key in keys]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


# --- reading


def read_state_dict(path: Path, trust: bool = False) -> State:
    """The tensors of a file by name, on the CPU.

    Arguments:
        trust: whether a pickle may hold anything else beside them.

    Raises InvalidModelError if the file is damaged or holds no state_dict, UnsafeInputError if loading it would run
    code.
    """
    if _ending(path) == SAFETENSORS:
        return _safetensors(path)
    content = _unpickled(path, trust)
    if isinstance(content, torch.nn.Module):
        return dict(content.state_dict())
    for key in (None, *_INSIDE):
        if not isinstance(content, dict):
            break
        state = content if key is None else content.get(key)
        if isinstance(state, dict) and state and all(isinstance(v, torch.Tensor) for v in state.values()):
            if any(not isinstance(name, str) for name in state):
                raise InvalidModelError(f"{_name(path)} has tensors by keys that are no names")
            return dict(state)
    raise InvalidModelError(f"{_name(path)} holds no state_dict; save module.state_dict()")


def _ending(path: Path) -> str:
    return os.path.splitext(os.fspath(path))[1].lower()


def _name(path: Path) -> str:
    return shown(os.fspath(path), 200)[1:-1]


def _check_regular(path: Path) -> None:
    """Raises InvalidModelError for what is no file: reading a pipe would wait for a writer."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"{_name(path)}: there is no such file") from error
    if not regular:
        raise InvalidModelError(f"{_name(path)} is not a regular file")


def _safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_regular(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InvalidModelError(f"{_name(path)} cannot be read as safetensors: {error}") from error


def _unpickled(path: Path, trust: bool) -> Any:
    """What a file of torch.save holds. Unless it is trusted, it is read with torch's list of harmless types only."""
    _check_regular(path)
    name = _name(path)
    with open(path, "rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:  # bounds on the archive, before torch reads it
        with read_archive(path, kind="file of torch.save") as archive:
            if any(member.endswith("/constants.pkl") for member in archive):
                raise UnsupportedError(
                    f"{name} is TorchScript; export the module with torch.export.save and convert the .pt2 file"
                )
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if not trust and ("GLOBAL" in str(error) or "class" in str(error)):
            raise UnsafeInputError(
                f"{name} holds pickled objects other than tensors (a whole module?), and loading them would run code; "
                "save module.state_dict() instead, or trust the file if it is your own (trust=True, --trust)"
            ) from error
        raise InvalidModelError(f"{name} is not a file of torch.save, or is damaged") from error
    except ModuleNotFoundError as error:  # of a trusted file
        raise InvalidModelError(f"{name} holds a module of {error.name!r}, which is not there to import") from error
    except _DAMAGED as error:
        raise InvalidModelError(
            f"{name} is not a file of torch.save, or is damaged ({type(error).__name__})"
        ) from error
