"""What a fresh reader of the PyTorch import found: writes that autograd does not see, gradients that hooks change,
names that change their shape, results that are no tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torch import nn

import interlux as ix
from tests.helpers import Calls, check_batches, check_outputs, check_training

Forward = Callable[[Any, torch.Tensor], Any]


def signature_of(model: ix.Model) -> Any:
    assert model.signature is not None
    return model.signature


def weighted(forward: Forward) -> Calls:
    return Calls(forward, w=nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)))


def inputs() -> torch.Tensor:
    return torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]], dtype=torch.float64)


# --- writes that autograd does not see


def part_of_a_constant(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w
    z = torch.zeros_like(y)
    with torch.no_grad():
        z[:, 1] = y[:, 1]
    return z + y


def part_before_a_seen_write(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w
    z = torch.zeros_like(y)
    with torch.no_grad():
        z[:, 0] = 1
        z[:, 1] = y[:, 1]
    z[:, 2] = y[:, 2]
    return z


def clamped(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w * 1
    with torch.no_grad():
        y.clamp_(max=3)
    return y


def scaled_infinite(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w / torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
    with torch.no_grad():
        y.nan_to_num_(posinf=-0.0)
    return y[:, ::2], y.detach()


def copied_into(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w * 1
    with torch.no_grad():
        y.copy_(x)
    return y + 1


def first_column(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w * 1
    v = y.mT
    with torch.no_grad():
        y[:, 0] = y[:, 1] * 3
    return y, v * v.detach()


def through_an_outer_view(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w * 1
    v = y[:, 1:]
    with torch.no_grad():
        v.mul_(2)
        v.neg_()
    return y, v


def views_made_inside(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w * 1
    with torch.no_grad():
        v = y.view(-1)
        y.add_(1)
        c = y.clone()
        same = y.contiguous()
        u = v * 1
    return y * m.w, u * m.w.sum(), c * m.w, same


def computed_and_written_inside(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w
    with torch.no_grad():
        z = y * 2
        z[:, 0].add_(1)
        c = y.clone()
    return y * z, c + m.w


def detached(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w * 1
    d = y.detach()
    d.mul_(2)
    d[:, 0] = 7
    return y + 1, d


def detached_with_a_derivative(m: Any, x: torch.Tensor) -> Any:
    y = x * 1
    d = y.detach()
    d.mul_(m.w)
    y.add_(1)
    return y, d


def detached_in_place(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w
    with torch.no_grad():
        y.detach_()
    return y * m.w


def in_inference_mode(m: Any, x: torch.Tensor) -> Any:
    with torch.inference_mode():
        k = x * m.w
    return k + x * m.w


@torch.inference_mode()
def decorated(x: torch.Tensor) -> torch.Tensor:
    return x * 3


def written_to_a_buffer(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w
    with torch.no_grad():
        m.mean.mul_(0.5).add_(y.mean(0))
    return y + m.mean


UNSEEN: dict[str, Forward] = {
    f.__name__: f
    for f in (
        *(part_of_a_constant, part_before_a_seen_write, clamped, copied_into, first_column, through_an_outer_view),
        *(views_made_inside, computed_and_written_inside, detached, detached_with_a_derivative, detached_in_place),
        *(in_inference_mode,),
    )
} | {"decorated": lambda m, x: decorated(x * m.w) + x * m.w}


@pytest.mark.parametrize("name", UNSEEN)
def test_unseen_writes_have_pytorchs_gradients(name: str) -> None:
    module = weighted(UNSEEN[name])
    check_training(module, ix.from_torch(module, inputs()), [inputs()])
    with torch.no_grad():
        check_outputs(module, ix.from_torch(module, inputs()), [inputs()])


def test_an_unseen_write_to_a_buffer_is_kept() -> None:
    module = Calls(written_to_a_buffer, w=nn.Parameter(torch.ones(3).double()), mean=torch.ones(3).double())
    check_training(module, ix.from_torch(module, inputs()), [inputs()])


def test_an_unseen_write_is_exact() -> None:
    """Old values that are infinite leave no NaN, and zeros keep their sign."""
    module = weighted(scaled_infinite)
    layer, params, states = ix.from_torch(module, inputs())
    with jax.enable_x64(True):
        _, all_ = layer.apply(params, states, inputs().numpy(), train=True)[0]
        gradients = jax.grad(lambda p: layer.apply(p, states, inputs().numpy(), train=True)[0][0].sum())(params)
    expected = module(inputs())
    expected[0].sum().backward()
    np.testing.assert_array_equal(all_, expected[1].numpy())
    assert np.signbit(all_[:, 1]).all()
    parameter = module.get_parameter("w")
    assert parameter.grad is not None
    np.testing.assert_array_equal(gradients["w"], parameter.grad.numpy())


# --- views that are read again as results


VIEWS_AS_RESULTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "diagonal": lambda y: y.diagonal(dim1=1, dim2=2),
    "unfold": lambda y: y.unfold(2, 2, 1),
    "select": lambda y: y[:, 1],
    "transpose": lambda y: y.mT,
}


@pytest.mark.parametrize("name", VIEWS_AS_RESULTS)
def test_a_view_of_what_was_written_since_is_a_result(name: str) -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        y = x * 1
        v = VIEWS_AS_RESULTS[name](y)
        w = v * 2
        y.add_(1)
        return y, v, w, VIEWS_AS_RESULTS[name](y)

    module = Calls(forward)
    check_batches(module, ix.from_torch(module, torch.randn(2, 4, 4)), [(torch.randn(n, 4, 4),) for n in (2, 3, 1)])


def test_as_strided_of_what_was_written_since_is_a_result() -> None:
    module = Calls(lambda m, x: (lambda y: (lambda v: (y.add_(1), v)[::-1])(y.as_strided((3,), (2,), 1)))(x * 1))
    check_outputs(module, ix.from_torch(module, torch.randn(2, 4), None), [torch.randn(2, 4)])


# --- names that change their shape


def unsqueezed(m: Any, x: torch.Tensor) -> Any:
    y = x * 1
    a, v = y, y[:, 0]
    y.unsqueeze_(1)
    y[:, :, 1] += 1
    y.transpose_(0, 1)
    v.mul_(3)
    return a, v, y * m.w


def squeezed(m: Any, x: torch.Tensor) -> Any:
    y = x.unsqueeze(1).unsqueeze(3) * m.w[:, None]
    v = y[:, 0]
    y.squeeze_(3)
    y.squeeze_()
    y[:, 2].zero_()
    return y, v, y.unsqueeze_(-1).squeeze_((1, 2)).relu_()


def turned(m: Any, x: torch.Tensor) -> Any:
    y = x * 1
    y.t_()
    y[0] = 5
    y.swapaxes_(0, 1)
    y[:, 1] -= 1
    y.swapdims_(0, -1)
    return y, y.t_().add_(1) * m.w


def turned_view(m: Any, x: torch.Tensor) -> Any:
    y = x * m.w
    v = y[:, 1:]
    v.t_()
    v[0] *= m.w[0]
    return y, v


@pytest.mark.parametrize("forward", [unsqueezed, squeezed, turned, turned_view])
def test_reshaping_in_place(forward: Forward) -> None:
    module = weighted(forward)
    model = ix.from_torch(module, inputs())
    with torch.no_grad():
        check_batches(module, model, [(torch.randn(n, 3).double(),) for n in (2, 4, 3)])
    check_training(module, model, [inputs()])


REFUSED_RENAMINGS: dict[str, tuple[Forward, str]] = {
    "a buffer": (lambda m, x: x + m.h.unsqueeze_(0), "unsqueeze_.*changes the shape of a buffer"),
    "under no_grad": (
        lambda m, x: (lambda y: (torch.no_grad()(y.unsqueeze_)(0), y)[1])(x * 1),
        "unsqueeze_.*from outside its block",
    ),
    "out= of another shape, a view": (
        lambda m, x: (lambda y: (torch.add(x, 1, out=y[:0]), y)[1])(torch.zeros(4, 3)),
        "add.out.*shares its memory",
    ),
}


@pytest.mark.parametrize("name", REFUSED_RENAMINGS)
def test_what_changes_other_shapes_is_refused(name: str) -> None:
    forward, words = REFUSED_RENAMINGS[name]
    with pytest.raises(ix.UnsupportedError, match=words):
        ix.from_torch(Calls(forward, h=torch.zeros(3)), torch.randn(4, 3), None)


# --- writes


def through_real(m: Any, x: torch.Tensor) -> Any:
    y = x * 1
    r = y.real
    r.add_(1)
    y[:, 0] = 2
    return y, r


def two_outs(m: Any, x: torch.Tensor) -> Any:
    values, places = x[:, 0] * 1, torch.zeros(x.shape[0], dtype=torch.long)
    whole = torch.zeros(2, *values.shape, dtype=x.dtype)
    a, b = torch.max(x, 1, out=(values, places))
    torch.sort(x[:, :2], 1, out=(whole.t(), torch.zeros_like(whole, dtype=torch.long).t()))
    a.add_(1)
    return values, places, b, whole


@pytest.mark.parametrize("forward", [through_real, two_outs])
def test_writes(forward: Forward) -> None:
    module = Calls(forward)
    check_outputs(module, ix.from_torch(module, torch.randn(2, 3), None), [torch.randn(2, 3)])


def test_out_gets_the_shape_of_its_result() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        y = torch.empty(0)
        torch.add(x, 1, out=y)
        values, places = torch.empty(0), torch.empty(0, dtype=torch.long)
        torch.topk(x, 2, out=(values, places))
        values[:, 0] = 3
        return y[:, 1:].mul_(2), y, values, places

    module = Calls(forward)
    check_outputs(module, ix.from_torch(module, torch.randn(2, 3), None), [torch.randn(2, 3)])


# --- hooks on gradients


class Hooked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(3, 3).double()
        self.w = nn.Parameter(torch.ones(3).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.part(x * self.w).tanh()


class HookInside(Hooked):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.w
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient * 10)
        return self.part(y)


def hook(module: nn.Module, *gradients: Any) -> Any:
    return tuple(g * 10 for g in gradients[0])


HOOKS: dict[str, tuple[Callable[[], tuple[nn.Module, Any]], str]] = {
    "parameter": (lambda: ((m := Hooked()), m.part.weight.register_hook(lambda g: g * 10)), "parameters.*part.weight"),
    "own parameter": (lambda: ((m := Hooked()), m.w.register_hook(lambda g: g * 10)), "parameters.*: w"),
    "module": (lambda: ((m := Hooked()), m.part.register_full_backward_hook(hook)), r"hook of part.*part \(Linear\)"),
    "module, before": (lambda: ((m := Hooked()), m.part.register_full_backward_pre_hook(hook)), "hook of part"),
    "all modules": (
        lambda: (Hooked(), nn.modules.module.register_module_full_backward_hook(hook)),
        "hook of all modules",
    ),
    "tensor": (lambda: (HookInside(), None), "hook of a tensor.*y.register_hook"),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_on_gradients_leave_evaluation_only(name: str) -> None:
    make, words = HOOKS[name]
    module, handle = make()
    try:
        model = ix.from_torch(module, inputs())
        with torch.no_grad():
            check_outputs(module.eval(), model, [inputs()])
        with pytest.raises(ix.UnsupportedError, match=f"evaluation only.*{words}"):
            model.layer.apply(model.params, model.states, inputs().numpy(), train=True)
    finally:
        if handle is not None:
            handle.remove()


@pytest.mark.parametrize("name", ["module", "module, before", "tensor"])
def test_hooks_act_in_parts_that_stay_in_pytorch(name: str) -> None:
    module, _ = HOOKS[name][0]()
    check_training(module, ix.from_torch(module, inputs(), opaque="wrap"), [inputs()])


def test_hooks_of_parameters_do_not_act_in_parts_that_stay_in_pytorch() -> None:
    module, _ = HOOKS["parameter"][0]()
    model = ix.from_torch(module, inputs(), opaque="wrap")
    with pytest.raises(ix.UnsupportedError, match="gradients of parameters.*part.weight"):
        model.layer.apply(model.params, model.states, inputs().numpy(), train=True)


def test_hooks_after_accumulation_change_no_gradient() -> None:
    module = Hooked()
    module.w.register_post_accumulate_grad_hook(lambda parameter: None)
    model = ix.from_torch(module, inputs())
    assert not model.notes
    check_training(module, model, [inputs()])


# --- results that are no tensors


def test_sizes_and_numbers_are_results_of_rank_0() -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        n, total = x.shape[0], x.sum().item()
        return {"y": x * 2, "n": n, "double": (2 * n + 1, n * 0.5), "total": total, "none": None, "width": x.shape[1],
                "five": 5, "count": (x > 0).sum().item(), "some": (x > 0).any().item()}  # fmt: skip

    model = ix.from_torch(Calls(forward), torch.randn(2, 3))
    form = signature_of(model).out_structure["dict"]
    assert [form[key] for key in ("y", "n", "double", "total", "count", "some")] == [0, 1, {"tuple": [2, 3]}, 4, 5, 6]
    assert [form[key] for key in ("none", "width", "five")] == [{"value": None}, {"value": 3}, {"value": 5}]
    for x in (torch.ones(2, 3), torch.rand(5, 3), -torch.ones(1, 3)):
        expected = [
            x * 2,
            len(x),
            2 * len(x) + 1,
            len(x) * 0.5,
            x.sum().item(),
            int((x > 0).sum()),
            bool((x > 0).any()),
        ]
        for backend in ("jax", "onnxruntime"):
            found = ix.compile(model, backend).run([x.numpy()])
            kinds = (np.float32, np.int64, np.int64, np.float64, np.float64, np.int64, np.bool_)
            assert [f.dtype for f in found] == [np.dtype(kind) for kind in kinds]
            for mine, theirs in zip(found, expected, strict=True):
                np.testing.assert_allclose(mine, np.asarray(theirs), rtol=1e-5)


def test_numbers_of_fixed_sizes_are_constants() -> None:
    model = ix.from_torch(Calls(lambda m, x: (x, x.shape[0], True)), torch.randn(2, 3), None)
    assert signature_of(model).out_structure == {"tuple": [0, {"value": 2}, {"value": True}]}


def test_results_that_cannot_be_imported_are_named_together() -> None:
    module = Calls(lambda m, x: (torch.complex(x, x), x, torch.complex(x, -x)))
    words = "result 0 of the module is complex; return torch.view_as_real.*complex.*result 2 of the module"
    with pytest.raises(ix.UnsupportedError, match=words):
        ix.from_torch(module, torch.randn(2, 3))


@pytest.mark.parametrize("result", [None, 5, (), {"a": None}])
def test_a_module_that_returns_no_tensor_is_refused(result: Any) -> None:
    with pytest.raises(ix.UnsupportedError, match="the module returns no tensor"):
        ix.from_torch(Calls(lambda m, x: result), torch.randn(2, 3))
