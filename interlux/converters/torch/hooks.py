"""What changes gradients as a module runs, and is in no exported program: hooks, functions with a backward of their
own, inference mode."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from .places import Spot, class_name, note


def hooked_parameters(module: torch.nn.Module) -> list[str]:
    """The parameters that have hooks on their gradients. Those that act after a gradient is accumulated are left out:
    they see `.grad`, and change no gradient on its way."""
    return [name for name, parameter in module.named_parameters() if parameter._backward_hooks]


def hooked_modules(module: torch.nn.Module, without: Iterable[str] = ()) -> dict[str, Spot]:
    """The modules that have hooks on gradients, each said in a few words.

    Arguments:
        without: paths of sub-modules that keep theirs.
    """
    found: dict[str, Spot] = {}
    if torch_module._global_backward_hooks or torch_module._global_backward_pre_hooks:
        found["a hook of all modules changes gradients"] = Spot((("", class_name(module)),))
    kept = [f"{path}." for path in without]
    for path, part in module.named_modules():
        if any(f"{path}.".startswith(each) or each == "." for each in kept):
            continue
        if part._backward_hooks or part._backward_pre_hooks:
            found[f"a hook of {path or 'the module'} changes gradients"] = Spot(((path, class_name(part)),))
    return found


@contextmanager
def gradients_noted(module: torch.nn.Module, found: dict[str, Spot]) -> Iterator[None]:
    """Notes what an export forgets: the calls of torch.autograd.Function outside torch itself, of which only the
    forward is exported, and hooks on the gradients of tensors."""
    apply_it = vars(torch.autograd.Function)["apply"]
    register_it: Callable[..., Any] = torch.Tensor.register_hook
    thread = threading.get_ident()

    def apply(cls: type, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread and cls.__module__.partition(".")[0] != "torch":
            note(found, f"{cls.__qualname__} has a backward of its own", module, sys._getframe(1))
        return apply_it.__get__(None, cls)(*args, **kwargs)

    def register_hook(tensor: torch.Tensor, hook: Any) -> Any:
        if threading.get_ident() == thread and not str(getattr(hook, "__module__", "")).startswith("torch."):
            note(found, "a hook of a tensor changes its gradient", module, sys._getframe(1))
        return register_it(tensor, hook)

    torch.autograd.Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    torch.Tensor.register_hook = register_hook  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autograd.Function.apply = apply_it  # type: ignore[method-assign]
        torch.Tensor.register_hook = register_it  # type: ignore[method-assign]


@contextmanager
def inference_as_no_grad() -> Iterator[None]:
    """Blocks under torch.inference_mode are exported as such under torch.no_grad, which computes the same; of
    themselves they leave no trace in a program."""
    enter_it, leave_it = torch.inference_mode.__enter__, torch.inference_mode.__exit__
    thread = threading.get_ident()

    def enter(self: Any) -> None:
        if threading.get_ident() != thread:
            enter_it(self)
            return
        self._instead = torch.set_grad_enabled(not self.mode)

    def leave(self: Any, *error: Any) -> None:
        if threading.get_ident() != thread:
            leave_it(self, *error)
            return
        self._instead.__exit__(*error)

    torch.inference_mode.__enter__, torch.inference_mode.__exit__ = enter, leave  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = enter_it, leave_it  # type: ignore[method-assign]
