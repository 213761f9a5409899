"""What a module's code calls while it is exported that an exported program cannot hold."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ...ir.errors import UnsupportedError
from .places import Spot, note

# torch.export does not see what they do, and finds a tensor that comes from nowhere
_UNSEEN = {
    torch.Tensor.data.__get__: "`.data` hides a tensor from torch.export; use .detach()",  # type: ignore[attr-defined]
    torch.autograd.grad: "torch.autograd.grad inside forward reads tensors that torch.export has not seen",
}
_TRANSFORMED = "torch.func (grad, vjp, jacrev, …) inside forward computes with tensors of its own"
NOT_FURTHER = "what torch.autograd.grad gives without create_graph=True has no gradient"
_UNTRACED = "fake tensor in the exported program constant's list"


class Watching(TorchFunctionMode):
    """Notes where such functions are called, and refuses those that a program drops or that fail later.

    Arguments:
        module: the whole that is exported.
    """

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self._module = module
        self.unseen: dict[str, Spot] = {}
        self.not_further: dict[str, Spot] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _UNSEEN:
            note(self.unseen, _UNSEEN[func], self._module, sys._getframe(1))
        if func is torch.autograd.grad and not kwargs.get("create_graph"):
            note(self.not_further, NOT_FURTHER, self._module, sys._getframe(1))
        if func == torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            raise UnsupportedError("an assignment to `.data` cannot be exported; use .copy_() under torch.no_grad()")
        if func is torch.Tensor.backward:
            raise UnsupportedError(
                "backward() inside forward writes gradients, which an exported program does not keep"
            )
        if getattr(func, "__name__", "") == "_pack_padded_sequence":
            raise UnsupportedError(
                "packed sequences cannot be exported; give the recurrent layer the padded sequences and mask its "
                "results (the last state is that at length - 1)"
            )
        if func is torch.functional.cdist:  # by itself it chooses by the numbers of rows, what is computed is the same
            kwargs["compute_mode"] = "donot_use_mm_for_euclid_dist"
        if not torch.compiler.is_dynamo_compiling() and any(  # torch.cond and its like compile their branches
            isinstance(a, torch.Tensor) and torch._C._functorch.is_gradtrackingtensor(a) for a in args
        ):
            note(self.unseen, _TRANSFORMED, self._module, sys._getframe(1))
        return func(*args, **kwargs)

    def explained(self, reason: str, spot: Spot) -> tuple[str, Spot]:
        """Reason and place of an error of torch.export; where it only says that something was not traced, what and
        where that was."""
        if _UNTRACED not in reason:
            return reason, spot
        return next(iter(self.unseen.items()), ("its code computes with a tensor that torch.export has not seen", spot))

    def hidden(self, program: torch.export.ExportedProgram) -> tuple[str, Spot] | None:
        """What a program holds of a transformation of torch.func: tensors that are no more."""
        for value in program.constants.values():
            if isinstance(value, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(value):
                return _TRANSFORMED, self.unseen.get(_TRANSFORMED, Spot())
        return None
