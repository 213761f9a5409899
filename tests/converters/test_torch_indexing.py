"""Indexing, scattering, ordering and counting: one row for each operator and argument, on both backends, at two batch
sizes; and the derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import interlux as ix
from tests.helpers import Calls
from tests.torch_cases import Inputs, check_layer_in_training, check_operator, integers, rows, sequences

# torch's words about the age of some of these functions
pytestmark = [
    pytest.mark.filterwarnings("ignore:The reduce argument of torch.scatter:UserWarning"),
    pytest.mark.filterwarnings("ignore:index_reduce.. is in beta:UserWarning"),
]

tensor = torch.tensor
Case = tuple[Callable[..., Any], Inputs]


def volumes(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 5, 6, 4),)


def classes(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randint(0, 7, (b, 6)),)


def chosen(b: int) -> tuple[torch.Tensor, ...]:
    """Rows and a position in each, with duplicates."""
    return torch.randn(b, 5, 6), torch.randint(0, 5, (b, 3))


def masked(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 5, 6), torch.rand(b, 5) > 0.4


def fully_masked(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 5, 6), torch.rand(b, 5, 6) > 0.4


def scattered(b: int) -> tuple[torch.Tensor, ...]:
    """x, positions along its last axis with duplicates, a source that is larger than they are."""
    return torch.randn(b, 5, 6), torch.randint(0, 6, (b, 4, 3)), torch.randn(b, 5, 7)


def evenly_scattered(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 6), torch.randint(0, 6, (b, 4)), torch.randn(b, 4)


def whole_scattered(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randint(-9, 9, (b, 6)), torch.randint(0, 3, (b, 9)), torch.randint(-9, 9, (b, 9))


def with_ties(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randint(0, 4, (b, 9)).float(),)


def halves(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 6).half(),)


def set_item(x: torch.Tensor, key: Any, value: Any) -> torch.Tensor:
    y = x.clone()
    y[key] = value
    return y


CASES: dict[str, Case] = {
    # reading by tensors
    "one index in the middle": (lambda m, x: x[:, tensor([2, 0, 2])], volumes),
    "one index of rank 2": (lambda m, x: x[:, tensor([[2, 0], [1, -1]])], volumes),
    "a scalar index": (lambda m, x: x[:, tensor(2)], volumes),
    "negative indices": (lambda m, x: x[:, tensor([-1, -5, 2])], volumes),
    "indices of other dtypes": (
        lambda m, x: (
            x[:, tensor([2, -1], dtype=torch.int32)],
            x[0, tensor([1, 2], dtype=torch.int32), tensor([0, 1])],
        ),
        volumes,
    ),
    "leading axes": (lambda m, x: x[tensor([0, 1]), tensor([3, -1])], volumes),
    "all axes": (lambda m, x: x[tensor([0, 1]), tensor([3, -1]), tensor([2, 2]), tensor([0, 3])], volumes),
    "adjacent axes stay": (lambda m, x: x[:, tensor([0, 1, 4]), tensor([3, -1, 0])], volumes),
    "adjacent last axes": (lambda m, x: x[:, :, tensor([0, 1, 4]), tensor([3, -1, 0])], volumes),
    "axes apart move to the front": (lambda m, x: x[:, tensor([0, 1, 4]), :, tensor([3, -1, 0])], volumes),
    "first and last axis": (lambda m, x: x[tensor([0, 1, 0]), ..., tensor([3, -1, 0])], volumes),
    "three axes apart": (lambda m, x: x[tensor([0, 1]), :, tensor([3, 0]), tensor([1, 1])], volumes),
    "indices that broadcast": (lambda m, x: x[:, tensor([[0], [1], [4]]), tensor([3, -1])], volumes),
    "a scalar among indices": (lambda m, x: x[:, tensor(3), :, tensor([0, 2, 1])], volumes),
    "rank 2 indices apart": (lambda m, x: x[:, tensor([[0, 1], [4, 2]]), :, tensor([3, 0])], volumes),
    "computed indices": (lambda m, x, i: x[torch.arange(x.shape[0])[:, None], i], chosen),
    "computed indices of the last": (lambda m, x: x[torch.arange(x.shape[0]), x.argmax(1)], rows),
    "an index and a slice": (lambda m, x: x[:, 1:4, tensor([0, 2])], volumes),
    "an index and a new axis": (lambda m, x: x[:, None, tensor([0, 2])], volumes),
    "an index and a number": (lambda m, x: x[:, 2, tensor([0, 2])], volumes),
    "index of a half": (lambda m, x: x[:, tensor([1, 1, 0])], halves),
    # by masks: the size depends on the data
    "a mask over everything": (lambda m, x, k: x[k], fully_masked),
    "a mask over leading axes": (lambda m, x, k: x[k], masked),
    "a mask over one axis": (lambda m, x: x[:, tensor([True, False, True, True, False])], volumes),
    "a mask in the middle": (lambda m, x: x[:, x[0, :, 0, 0] > 0], volumes),
    "a mask of two axes in the middle": (lambda m, x: x[:, x[0, :, :, 0] > 0], volumes),
    "a mask beside an index": (lambda m, x: x[tensor([1]), x[0, :, 0, 0] > 0], volumes),
    "what a mask chose, used": (lambda m, x, k: (x[k] * 2 + 1, x[k].sum(0), x[k].shape[0] * x[0, 0]), masked),
    "masked_select": (lambda m, x, k: torch.masked_select(x, k[:, :, None]), masked),
    "masked_select of a broadcast x": (lambda m, x, k: torch.masked_select(x[:, :1, :1], k), fully_masked),
    # one axis
    "gather": (lambda m, x, i: x.gather(1, i[:, :, None]), chosen),
    "gather of fewer rows": (lambda m, x: x.gather(-1, tensor([[[5, 0], [1, 1]]])), sequences),
    "gather of scalars": (lambda m, x: x[0, 0].gather(0, tensor(0)), rows),
    "index_select": (lambda m, x: (x.index_select(1, tensor([4, 0])), x.index_select(-1, tensor(2))), sequences),
    "index_select of a scalar": (lambda m, x: x[0, 0].index_select(0, tensor([0])), rows),
    "take": (lambda m, x: (x.take(tensor([[3, 0], [-1, 7]])), torch.take(x, tensor(2))), sequences),
    "take_along_dim": (
        lambda m, x: (
            torch.take_along_dim(x, x.argsort(1), 1),
            torch.take_along_dim(x, tensor([[3, 7]])),
        ),
        sequences,
    ),
    "take_along_dim that broadcasts": (
        lambda m, x: (torch.take_along_dim(x, tensor([[[1], [2]]]), -2), torch.take_along_dim(x[:1], x.argsort(1), 1)),
        sequences,
    ),
    # writing
    "setting columns": (lambda m, x: set_item(x, (slice(None), tensor([1, 3])), 0.5), volumes),
    "setting negative columns": (lambda m, x: set_item(x, (slice(None), tensor([-1, 0])), x[:, :2] * 2), volumes),
    "setting axes apart": (
        lambda m, x: set_item(x, (slice(None), tensor([1, 3]), slice(None), tensor([0, 2])), x[0, 0, :, :1].T + 1),
        volumes,
    ),
    "setting adjacent axes": (
        lambda m, x: set_item(x, (slice(None), tensor([1, 3]), tensor([0, 2])), x[:, 0, :2] * 3),
        volumes,
    ),
    "setting by index and number": (lambda m, x: set_item(x, (slice(None), 1, tensor([0, 2])), 7.0), volumes),
    "index_put": (lambda m, x: x.index_put((tensor([0, 1]), tensor([2, 2])), tensor(3.0)), volumes),
    "index_put, accumulating": (
        lambda m, x: (
            x.index_put((tensor([0, 1, 0]), tensor([2, 2, 2])), x[0, 0], accumulate=True)
            if False
            else x.index_put((tensor([0, 1, 0]), tensor([2, 2, 2])), tensor(1.5), accumulate=True)
        ),
        volumes,
    ),
    "index_put of integers": (
        lambda m, i: i.index_put((tensor([0, 1, 0]), tensor([2, 2, 2])), tensor([3, 4, 5]), accumulate=True),
        integers,
    ),
    "index_put of bools": (
        lambda m, x: (x > 0).index_put((tensor([0, 1, 0]), tensor([2, 2, 2])), tensor(True), accumulate=True),
        rows,
    ),
    "index_put of halves": (
        lambda m, x: x.index_put((tensor([0, 1, 0]), tensor([2, 2, 2])), tensor(0.1).half(), accumulate=True),
        halves,
    ),
    "setting where a mask is": (lambda m, x, k: set_item(x, k, 0.25), masked),
    "setting a row where a mask is": (lambda m, x, k: set_item(x, k, torch.arange(6.0)), masked),
    "setting one row of values where a mask is": (lambda m, x, k: set_item(x, k, torch.arange(6.0)[None]), masked),
    "setting as many as a mask chose": (lambda m, x, k: set_item(x, k, x[k] * -2), masked),
    "setting values as computed": (lambda m, x, k: set_item(x, k, torch.arange(k.sum().item()) * 1.0), fully_masked),
    "setting columns of a mask": (
        lambda m, x: set_item(x, (slice(None), x[0, :, 0, 0] > 0), x[:, :1] * 0 + 3),
        volumes,
    ),
    "setting a mask of two axes in the middle": (
        lambda m, x: set_item(x, (slice(None), x[0, :, :, 0] > 0), x[:, 0, :1]),
        volumes,
    ),
    "setting a mask beside an index": (
        lambda m, x: set_item(x, (tensor([1]), x[0, :, 0, 0] > 0), 2.0),
        volumes,
    ),
    "setting other dtypes where a mask is": (
        lambda m, x, k: (
            set_item(x > 0, k, torch.ones(6) > 0),
            set_item(x.to(torch.int16), k, torch.arange(6, dtype=torch.int16)),
            set_item(x.half(), k, 0.3),
            (x > 0).masked_scatter(k[:, :, None], x.flatten().repeat(9) > 0.5),
        ),
        masked,
    ),
    "sort of NaN": (
        lambda m, x: (
            *x.masked_fill(x > 1, torch.nan).sort(stable=True),
            *x.masked_fill(x > 1, torch.nan).sort(stable=True, descending=True),
            *(x / (x.abs() > 0.5)).half().masked_fill(x < -0.5, torch.nan).sort(stable=True),
            *(x / (x.abs() > 0.5)).double().masked_fill(x < -0.5, torch.nan).sort(stable=True, descending=True),
            x.masked_fill(x > 1, torch.nan).topk(3)[0],
        ),
        rows,
    ),
    "order of infinities": (
        lambda m, x: (x.masked_fill(x > 0, torch.inf).topk(4)[0], x.masked_fill(x > 1, -torch.inf).sort()[0]),
        rows,
    ),
    "index_put by a mask, accumulating": (lambda m, x, k: x.index_put((k,), tensor(2.0), accumulate=True), masked),
    "masked_scatter": (lambda m, x, k: x.masked_scatter(k, torch.arange(300.0)), fully_masked),
    "masked_scatter of a broadcast mask": (
        lambda m, x, k: x.masked_scatter(k[:, :, None], torch.arange(300.0)),
        masked,
    ),
    "masked_scatter of nothing": (lambda m, x: x.masked_scatter(x > 99, torch.zeros(0)), rows),
    # scattering elements
    "scatter": (lambda m, x, i, s: x.scatter(1, tensor([[5, 0], [3, 2]]), s), evenly_scattered),
    "scatter of a number": (lambda m, x, i, s: x.scatter(-1, i, 2.5), evenly_scattered),
    "scatter, reducing": (
        lambda m, x, i, s: (x.scatter(1, i, s, reduce="add"), x.scatter(1, i, 1.5, reduce="multiply")),
        evenly_scattered,
    ),
    "scatter of a larger source": (
        lambda m, x, i, s: x.scatter(2, i.sort(-1)[0] * 0 + tensor([0, 3, 5]), s),
        scattered,
    ),
    "scatter of scalars": (lambda m, x: x[0, 0].scatter(0, tensor(0), x[0, 1]), rows),
    "scatter_add": (lambda m, x, i, s: x.scatter_add(-1, i, s), scattered),
    "scatter_add of integers": (lambda m, x, i, s: x.scatter_add(1, i, s), whole_scattered),
    "scatter_add of halves": (lambda m, x, i, s: x.half().scatter_add(1, i, s.half()), evenly_scattered),
    **{
        f"scatter_reduce {kind}{'' if own else ', without itself'}": (
            lambda m, x, i, s, kind=kind, own=own: x.scatter_reduce(2, i, s, kind, include_self=own),
            scattered,
        )
        for kind in ("sum", "prod", "mean", "amax", "amin")
        for own in (True, False)
    },
    **{
        f"scatter_reduce {kind} of integers{'' if own else ', without itself'}": (
            lambda m, x, i, s, kind=kind, own=own: x.scatter_reduce(1, i, s, kind, include_self=own),
            whole_scattered,
        )
        for kind in ("prod", "mean", "amax", "amin")
        for own in (True, False)
    },
    "scatter_reduce of NaN": (
        lambda m, x, i, s: x.scatter_reduce(1, i, torch.where(s > 1, torch.nan, s), "amax"),
        evenly_scattered,
    ),
    # scattering rows
    "index_add": (
        lambda m, x: (
            x.index_add(1, tensor([0, 3, 0]), x[:, :3]),
            x.index_add(-1, tensor([0, 3]), x[..., :2], alpha=-2.5),
            x.index_add(0, tensor([1]), x[:1]),
        ),
        volumes,
    ),
    "index_add of integers": (lambda m, i: i.index_add(1, tensor([0, 3, 0]), i[:, :3], alpha=3), integers),
    "index_copy": (
        lambda m, x: (x.index_copy(1, tensor([4, 0]), x[:, 1:3]), x.index_copy(-1, tensor([2]), x[..., :1] * 9)),
        volumes,
    ),
    "index_fill": (
        lambda m, x: (
            x.index_fill(1, tensor([4, 0]), 0.5),
            x.index_fill(-1, tensor([-1]), x.sum()),
            x.index_fill(0, tensor(1), -1),
        ),
        volumes,
    ),
    **{
        f"index_reduce {kind}{'' if own else ', without itself'}": (
            lambda m, x, kind=kind, own=own: x.index_reduce(1, tensor([0, 3, 0]), x[:, :3] + 1, kind, include_self=own),
            volumes,
        )
        for kind in ("prod", "mean", "amax", "amin")
        for own in (True, False)
    },
    "put": (
        lambda m, x: (
            x.put(tensor([3, -1]), tensor([7.0, 8.0])),
            x.put(tensor([[3, 0], [3, 1]]), tensor([[1.0, 2.0], [3.0, 4.0]]), accumulate=True),
        ),
        sequences,
    ),
    "select_scatter": (
        lambda m, x: (
            x.select_scatter(x[:, 0] * 2, 1, -1),
            x.select_scatter(x[:, 0] * 2, 1, 1),
            x.select_scatter(x[0] * 2, 0, 0),
        ),
        sequences,
    ),
    "slice_scatter": (
        lambda m, x: (
            x.slice_scatter(x[:, :2] * 2, 1, 1, 3),
            x.slice_scatter(x[:, :3] * 2, 1, 0, None, 2),
            x.slice_scatter(x[:, :, :2] * 2, -1, -5, -1, 2),
        ),
        sequences,
    ),
    "diagonal_scatter": (
        lambda m, x: (
            x.diagonal_scatter(torch.ones(x.shape[0], 5), 1, 1, 2),
            x.diagonal_scatter(torch.ones(x.shape[0], 4), -2, -1, 1),
            x[0].diagonal_scatter(x[0, :, 0]),
        ),
        sequences,
    ),
    "fill_diagonal_": (
        lambda m, x: (
            x[:, :4, :4].clone().flatten(1)[:1].reshape(4, 4).fill_diagonal_(7),
            x[0].clone().fill_diagonal_(7),
            x[0].T.clone().fill_diagonal_(7),
            x[0, :, :2].clone().fill_diagonal_(7, wrap=True),
            x[0, :3, :2, None].repeat(1, 1, 3)[:2, :, :2].clone().fill_diagonal_(-1.5),
        ),
        sequences,
    ),
    # positions
    "nonzero": (lambda m, x: (torch.nonzero(x > 0), (x > 0).nonzero(), torch.argwhere(x[:, 0])), sequences),
    "nonzero of integers": (lambda m, i: (i % 3).nonzero(), integers),
    "nonzero as a tuple": (lambda m, x: (*torch.nonzero(x > 0, as_tuple=True), *torch.where(x[0] > 0)), sequences),
    "nonzero_static": (
        lambda m, x: (
            torch.nonzero_static(x > 0, size=4),
            torch.nonzero_static(x[:1] > 9, size=3, fill_value=7),
        ),
        rows,
    ),
    "one_hot": (
        lambda m, i: (nn.functional.one_hot(i, 9), nn.functional.one_hot(i[0, 0], 7)),
        classes,
    ),
    # ordering
    "sort": (lambda m, x: (*x.sort(), *x.sort(1), *x.sort(0, descending=True)), sequences),
    "stable sort": (
        lambda m, x: (*torch.sort(x, stable=True), *torch.sort(x, stable=True, dim=0, descending=True)),
        with_ties,
    ),
    "sort of other dtypes": (
        lambda m, i: (
            *i.sort(),
            *i.to(torch.int8).sort(1, True),
            *(i > 0).sort(stable=True),
            i.to(torch.uint8).sort()[0],
        ),
        integers,
    ),
    "sort of halves": (lambda m, x: (*x.sort(stable=True), *x.double().sort()), halves),
    "sort of a scalar": (lambda m, x: (*x[0, 0].sort(), *x[0, 0].topk(1), *x[0, 0].kthvalue(1)), rows),
    "argsort": (lambda m, x: (x.argsort(), x.argsort(1, descending=True), x.argsort(dim=0)), sequences),
    "stable argsort": (
        lambda m, x: (x.argsort(stable=True), x.argsort(dim=1, descending=True, stable=True)),
        with_ties,
    ),
    "msort": (lambda m, x: torch.msort(x), sequences),
    "topk": (
        lambda m, x: (*x.topk(3), *x.topk(2, 1), *x.topk(4, largest=False), *x.topk(2, -2, False, sorted=True)),
        sequences,
    ),
    "topk of integers": (
        lambda m, x: (x.to(torch.int16).topk(2)[0], x.to(torch.int32).topk(3, largest=False)[0]),
        with_ties,
    ),
    "topk of a dynamic size": (
        lambda m, x: (*x.topk(x.shape[0], 0), *x.topk(x.shape[0] * 2 - x.shape[0], 0, False)),
        rows,
    ),
    "kthvalue": (
        lambda m, x: (*x.kthvalue(2), *x.kthvalue(5, 1), *x.kthvalue(1, 1, keepdim=True), *x.kthvalue(2, 0)),
        sequences,
    ),
    "unique": (
        lambda m, x: (
            torch.unique(x),
            *torch.unique(x, return_inverse=True),
            *torch.unique(x, return_counts=True),
            *torch.unique(x, return_inverse=True, return_counts=True),
        ),
        with_ties,
    ),
    "unique of integers": (lambda m, x: (*x.long().unique(return_inverse=True), x.to(torch.int16).unique()), with_ties),
    "unique along an axis": (
        lambda m, x: (
            *torch.unique(x % 2, dim=1, return_inverse=True, return_counts=True),
            torch.unique(x[:, :2], dim=0),
        ),
        with_ties,
    ),
    "unique_consecutive": (
        lambda m, x: (
            torch.unique_consecutive(x),
            *torch.unique_consecutive(x % 2, return_inverse=True, return_counts=True),
            *torch.unique_consecutive(x % 2, return_counts=True, dim=1),
            torch.unique_consecutive((x > 1).flatten()),
        ),
        with_ties,
    ),
    "searchsorted": (
        lambda m, x: (
            torch.searchsorted(tensor([-1.0, 0.0, 0.0, 2.0]), x),
            torch.searchsorted(tensor([-1.0, 0.0, 0.0, 2.0]), x * 0, right=True),
            torch.searchsorted(x.sort(-1)[0], x[:, :4] / 2),
            torch.searchsorted(x.sort(-1)[0], x, side="right", out_int32=True),
            torch.searchsorted(tensor([-1.0, 0.0, 2.0]), 0.0),
            torch.searchsorted(tensor([3.0, -1.0, 1.0]), x, sorter=tensor([1, 2, 0])),
        ),
        rows,
    ),
    "searchsorted of NaN and infinities": (
        lambda m, x: (
            torch.searchsorted(tensor([-1.0, 1.0]), x / (x > 0)),
            torch.searchsorted(tensor([-1.0, 1.0]), torch.where(x > 0, torch.nan, x), right=True),
        ),
        rows,
    ),
    "bucketize": (
        lambda m, x: (
            torch.bucketize(x, tensor([-1.0, 0.0, 0.5])),
            torch.bucketize(x.round(), tensor([-1.0, 0.0, 1.0]), right=True, out_int32=True),
            torch.bucketize((x * 3).long(), tensor([-2, 0, 1])),
            torch.bucketize(0.7, x[0].sort()[0]),
        ),
        rows,
    ),
    "bincount": (
        lambda m, i: (
            torch.bincount(i.flatten()),
            torch.bincount(i[0], minlength=11),
            torch.bincount(i[0], i[0] * 0.5, 3),
            torch.bincount(i[0], (i[0] * 0.5).double()),
        ),
        classes,
    ),
    "histc": (
        lambda m, x: (
            torch.histc(x, 4, -1, 1),
            x.histc(bins=7),
            torch.histc(torch.where(x > 1, torch.nan, x), 3, -2, 0),
            torch.histc(x * 0, 5),
        ),
        rows,
    ),
    "repeat_interleave by a tensor": (
        lambda m, x: (
            x.repeat_interleave(tensor([1, 0, 2, 1, 3]), 1),
            x.repeat_interleave(tensor([1, 0, 2, 1, 3]), 1, output_size=7),
            x.repeat_interleave(tensor([2]), -1),
            torch.repeat_interleave(tensor([2, 0, 3])),
            x[0, 0].repeat_interleave((x[0, 0] > 0) + 1),
        ),
        sequences,
    ),
    # numbers taken from tensors
    "item": (lambda m, x: x * tensor(3).item() + x[:, : int(tensor(4))].sum(), rows),
    "item of computed numbers": (lambda m, x: (x * (x > 0).sum().item(), x * x.max().item()), rows),
    "narrow from a tensor": (
        lambda m, x: (x.narrow(1, tensor(2), 3), x.narrow(2, tensor(-4), 3)),
        sequences,
    ),
}

# what torch exports for one size only
FIXED = {"take_along_dim", "take_along_dim that broadcasts"}


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str) -> None:
    check_operator(*CASES[name], batches=(3,) if name in FIXED else (3, 2, 5))


class Weighted(nn.Module):
    """A function of (weight, input), whose derivative by the weight is checked."""

    def __init__(self, function: Callable[..., Any], *shape: int):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(-1, 1, int(torch.Size(shape).numel())).sin().reshape(shape))

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(self.weight, *inputs)


GRADIENTS: dict[str, Case] = {
    "index, with duplicates": (lambda w, x: w[:, tensor([0, 2, 0])] * x[0, 0, 0, 0], volumes),
    "indices apart": (lambda w, x: w[tensor([0, 1, 0]), :, tensor([1, 2, 1])] * x[0, 0, 0, 0], volumes),
    "gather, with duplicates": (lambda w, x: w.gather(1, tensor([[[0, 0, 1], [4, 0, 1]]])) * x[0, 0, 0, 0], volumes),
    "setting": (lambda w, x: set_item(w, (slice(None), tensor([1, 3])), w[:, :2] * x[0, 0, 0, 0]), volumes),
    "accumulating": (
        lambda w, x: w.index_put((tensor([0, 1, 0]), tensor([2, 2, 2])), w[0, :3] * x[0, 0, 0, 0], accumulate=True),
        volumes,
    ),
    "setting by a mask": (lambda w, x: set_item(w, w > 0, x[0, 0, 0, 0]) * w, volumes),
    "masked_scatter": (
        lambda w, x: torch.ones(4, 5, 3, dtype=w.dtype).masked_scatter(w > 0, w * x[0, 0, 0, 0]) * w,
        volumes,
    ),
    "scatter": (lambda w, x: w.scatter(1, tensor([[[4], [0]]]), w[:1, 2:4, :1] * x[0, 0, 0, 0]) * 2, volumes),
    "scatter_add": (lambda w, x: w.scatter_add(1, tensor([[[4], [4]]]), w[:1, 2:4, :1] * x[0, 0, 0, 0]) * 2, volumes),
    "scatter_reduce mean": (
        lambda w, x: w.scatter_reduce(1, tensor([[[4], [4]]]), w[:1, 2:4, :1] * x[0, 0, 0, 0], "mean"),
        volumes,
    ),
    "scatter_reduce mean without itself": (
        lambda w, x: w.scatter_reduce(
            1, tensor([[[4], [4]]]), w[:1, 2:4, :1] * x[0, 0, 0, 0], "mean", include_self=False
        ),
        volumes,
    ),
    **{
        f"scatter_reduce {kind}{'' if own else ', without itself'}": (
            lambda w, x, kind=kind, own=own: (w.round(decimals=1) + w - w.detach()).scatter_reduce(
                1,
                tensor([[[4], [4], [4], [0]]]),
                torch.cat([w[:1, 2:4, :1], w[:1, 2:4, :1] * 2], 1),
                kind,
                include_self=own,
            ),
            volumes,
        )
        for kind in ("amax", "amin")
        for own in (True, False)
    },
    "scatter_reduce amax, ties": (
        lambda w, x: (
            (w * 0 + 1).scatter_reduce(
                1, tensor([[[4], [4], [0]]]), w[:1, :3, :1] * 0 + tensor([[1.0], [1.0], [2.0]]), "amax"
            )
            * w
        ),
        volumes,
    ),
    "index_add": (lambda w, x: w.index_add(1, tensor([0, 3, 0]), w[:, :3] * x[0, 0, 0, 0], alpha=2), volumes),
    "index_copy": (lambda w, x: w.index_copy(1, tensor([0, 3]), w[:, :2] * x[0, 0, 0, 0]), volumes),
    "index_fill": (lambda w, x: w.index_fill(1, tensor([0, 3]), w.sum()) * x[0, 0, 0, 0], volumes),
    "sort": (lambda w, x: w.sort(1, descending=True)[0] * torch.arange(5.0)[:, None] * x[0, 0, 0, 0], volumes),
    "topk": (lambda w, x: w.topk(2, 1, largest=False)[0] * torch.arange(1.0, 3)[:, None] * x[0, 0, 0, 0], volumes),
    "kthvalue": (lambda w, x: w.kthvalue(2, 1)[0] * x[0, 0, 0, 0], volumes),
    "take and put": (lambda w, x: w.put(tensor([1, 1]), w.take(tensor([3, 3])), True) * x[0, 0, 0, 0], volumes),
    "diagonal_scatter": (lambda w, x: w.diagonal_scatter(w[:, :3, 0] * x[0, 0, 0, 0], 0, 1, 2) * 3, volumes),
    "slice_scatter by steps": (lambda w, x: w.slice_scatter(w[:, :3] * x[0, 0, 0, 0], 1, 0, 5, 2) * 3, volumes),
    "repeat_interleave": (
        lambda w, x: w.repeat_interleave(tensor([1, 0, 2, 1, 3]), 1, output_size=7) * x[0, 0, 0, 0],
        volumes,
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_derivative(name: str) -> None:
    function, inputs = GRADIENTS[name]
    check_layer_in_training(lambda: Weighted(function, 4, 5, 3), inputs)


REFUSED: dict[str, tuple[Callable[..., Any], Inputs, str]] = {
    "histc of integers": (lambda m, i: torch.histc(i.int(), 3, 0, 2), integers, "histc"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, inputs, message = REFUSED[name]
    with pytest.raises(ix.UnsupportedError, match=message):
        ix.from_torch(Calls(function), inputs(3))
