"""Views, rearrangements, writes through views, tensors made from sizes, and numbers computed from sizes: on both
backends, at two batch sizes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import interlux as ix
from tests.helpers import Calls, check_outputs
from tests.torch_cases import Inputs, check_layer_in_training, check_operator, integers, rows, sequences

tensor = torch.tensor
Case = tuple[Callable[..., Any], Inputs]


def images(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 8, 6, 4),)


def pairs(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 6), torch.randn(b, 4)


SHAPES: dict[str, Case] = {
    "movedim": (
        lambda m, x: (
            x.movedim(1, -1),
            x.movedim((0, 1), (-1, 0)),
            torch.moveaxis(x, -1, 0),
            x.moveaxis((3, 1), (1, 2)),
        ),
        images,
    ),
    "swapped axes": (lambda m, x: (x.swapdims(1, -1), x.swapaxes(-2, 0)), images),
    "transposes": (lambda m, x: (x.mT, x.adjoint(), x.mH, x[0].H, x[0].T, x[0].t(), x.permute(-1, 0, 1)), sequences),
    "T of three axes": (lambda m, x: x.T, sequences),
    "ravel": (lambda m, x: (x.ravel(), x.T.ravel()), rows),
    "unflatten": (lambda m, x: (x.unflatten(1, (2, -1)), x.unflatten(-3, (4, 2))), images),
    "at least some axes": (
        lambda m, x: (
            *(f(x) for f in (torch.atleast_1d, torch.atleast_2d, torch.atleast_3d)),
            *(f(x[0]) for f in (torch.atleast_1d, torch.atleast_2d, torch.atleast_3d)),
            *(f(x[0, 0]) for f in (torch.atleast_1d, torch.atleast_2d, torch.atleast_3d)),
            *torch.atleast_2d(x[0], x[0, 0]),
            *torch.atleast_3d([x, x[0]]),
        ),
        rows,
    ),
    "squeezes": (
        lambda m, x: (x[:, :1].squeeze(-2), x[:, :1, :1].squeeze((1, 2)), x[:, :1].squeeze(2), x[:, :1, :1].squeeze()),
        sequences,
    ),
    "expands": (
        lambda m, x: (
            x[:, :1].expand(-1, 4, -1),
            x[:, None].expand(-1, 3, -1, -1),
            x[0, 0].expand(2, 6),
            x[:, :1].broadcast_to(x.shape[0], 2, 6),
            x[:, :, :1].expand_as(x),
        ),
        sequences,
    ),
    "slices": (
        lambda m, x: (x[:, ::2], x[:, 1:-1:3], x[:, -3:], x[:, :-7], x[:, 3:1], x[:, 9:], x[:, :, -1:-4:2], x[:, 1::9]),
        sequences,
    ),
    "slices of dynamic ends": (
        lambda m, x: (x[:, : x.shape[1] // 2], x[: x.shape[0]], x[:, -(x.shape[1] // 2) :], x[x.shape[0] - 1 :]),
        sequences,
    ),
    "selects": (lambda m, x: (x[-1], x[:, -2], x.select(2, -6), x[..., 3], x[x.shape[0] - 1]), sequences),
    "narrow": (lambda m, x: (x.narrow(1, 1, 3), x.narrow(-1, -4, 2), torch.narrow_copy(x, 1, 0, 2)), sequences),
    "splits": (
        lambda m, x: (
            *x.split(4, -1),
            *x.split([1, 2, 3], -1),
            *x.chunk(4, 1),
            *x.unbind(1),
            *torch.split_with_sizes(x, [2, 3], 1),
            *torch.functional.split(x, 2, 1),
        ),
        sequences,
    ),
    "tensor_split": (
        lambda m, x: (
            *x.tensor_split(4, -1),
            *x.tensor_split((1, 3), 1),
            *x.tensor_split((-2, 9), 2),
            *torch.hsplit(x, 5),
            *torch.hsplit(x[0, 0], [2, 3]),
            *torch.vsplit(x[0], [1, 4]),
            *torch.dsplit(x, 2),
            *torch.dsplit(x, [1]),
        ),
        sequences,
    ),
    "joins": (
        lambda m, x: (
            torch.hstack([x, x]),
            torch.hstack([x[0], x[0, :2]]),
            torch.vstack([x, x[0]]),
            torch.dstack([x, x * 2]),
            torch.dstack([x[0], x[0]]),
            torch.column_stack([x, x[:, 0]]),
            torch.row_stack([x[0], x]),
            torch.concat([x, x], -1),
            torch.concatenate([x, x.double()], 1),
            torch.stack([x, x.half()], -2),
        ),
        rows,
    ),
    "cat of other dtypes and of nothing": (
        lambda m, i: (
            torch.cat([i, i.half(), i > 0], 1),
            torch.cat([torch.zeros(0), i.float()]),
            torch.stack([i > 0, i]),
        ),
        integers,
    ),
    "block_diag": (lambda m, x, y: (torch.block_diag(x, y, x[0], y[0, 0]), torch.block_diag(x)), pairs),
    "repeats": (
        lambda m, x: (
            x.repeat(1, 2),
            x.repeat(2, 1, 3),
            x.tile(2),
            x.tile(1, 2),
            x.tile(2, 1, 1),
            x.repeat(x.shape[0], 1),
        ),
        rows,
    ),
    "repeats of other dtypes": (lambda m, i: (i.repeat(1, 2), (i > 0).repeat(2, 1), i.half().tile(2)), integers),
    "repeat_interleave": (
        lambda m, x: (
            x.repeat_interleave(2, 1),
            x.repeat_interleave(3, 0),
            x.repeat_interleave(2, -1),
            x.repeat_interleave(2),
            x[0].repeat_interleave(x.shape[0], 0),
        ),
        sequences,
    ),
    "flips": (lambda m, x: (x.flip(1), x.flip(0, -1), x.flipud(), x.fliplr(), x.flip(())), sequences),
    "rot90": (
        lambda m, x: (
            torch.rot90(x, 1, (1, 2)),
            torch.rot90(x, 2, (1, 2)),
            torch.rot90(x, -1, (1, 2)),
            torch.rot90(x, 5, (2, 1)),
            torch.rot90(x, 4, (-1, 0)),
        ),
        sequences,
    ),
    "rolls": (
        lambda m, x: (
            x.roll(2, 1),
            x.roll(-7, -1),
            x.roll((1, 2), (1, 2)),
            x.roll(5, 1),
            x[0].roll(4),
            x[0].roll(-29),
            x.roll(0, 1),
        ),
        sequences,
    ),
    "rolls along the batch": (
        lambda m, x: (
            x.roll(1, 0),
            x.roll(-2, 0),
            x.roll(7, 0),
            x.roll((3, 1), (0, 1)),
            x.roll(4),
            x.roll(x.shape[0], 1),
        ),
        sequences,
    ),
    "diagonals": (
        lambda m, x: (
            x.diagonal(),
            x.diagonal(1, 1, 2),
            x.diagonal(-2, 1, 2),
            x.diagonal(1, -1, 1),
            x.diagonal(0, 0, 2),
            x.diagonal(9, 1, 2),
            torch.linalg.diagonal(x),
            torch.linalg.diagonal(x, offset=-1, dim1=2, dim2=1),
        ),
        sequences,
    ),
    "diag": (
        lambda m, x: (x.diag(), x.diag(2), x.diag(-1), x[0].diag(), x[0].diag(1), x[0].diag(-2), torch.trace(x)),
        rows,
    ),
    "trace of integers": (lambda m, i: i.int().trace(), integers),
    "diag_embed": (
        lambda m, x: (x.diag_embed(), x.diag_embed(2), x.diag_embed(-1), x.diag_embed(1, 0, 2), x.diag_embed(-1, 2, 1)),
        rows,
    ),
    "diag_embed of other dtypes": (
        lambda m, i: (i.diag_embed(1), (i > 0).diag_embed(), i.short().diag_embed(-2), i.half().diag_embed(-1)),
        integers,
    ),
    "triangles": (
        lambda m, x: (x.tril(), x.triu(1), x.tril(-2), x.triu(-1), (x > 0).tril(), x.half().triu(), x.long().tril(1)),
        sequences,
    ),
    "windows": (
        lambda m, x: (
            x.unfold(1, 3, 1),
            x.unfold(-1, 2, 3),
            x.unfold(2, 6, 1),
            x.unfold(0, 1, 1),
            x[0, 0, 0].unfold(0, 1, 1),
        ),
        sequences,
    ),
    "as_strided": (
        lambda m, x: (x[0].clone().as_strided((2, 3), (1, 2)), torch.as_strided(x[0] * 1, (3, 2, 2), (6, 2, 0), 1)),
        sequences,
    ),
    "as_strided of a dynamic size": (
        lambda m, x: (x * 1).as_strided((x.shape[0], 3), (6, 2), 1),
        rows,
    ),
    "shuffles": (
        lambda m, x: (
            nn.functional.pixel_shuffle(x, 2),
            nn.functional.pixel_unshuffle(x, 2),
            nn.functional.channel_shuffle(x, 4),
            nn.functional.pixel_shuffle(x[0], 2),
            nn.functional.pixel_unshuffle(x[:, None], 2),
        ),
        images,
    ),
    "meshgrids": (
        lambda m, x, y: (
            *torch.meshgrid(x[0], y[0], indexing="ij"),
            *torch.meshgrid(x[0], y[0], y[0, :2], indexing="xy"),
            *torch.meshgrid(x[:, 0], y[0, 0], indexing="ij"),
            *torch.meshgrid([x[0], y[:, 0]]),
        ),
        pairs,
    ),
    "broadcasts": (lambda m, x, y: (*torch.broadcast_tensors(x[:, None], y[:, :, None], x[0, 0]),), pairs),
    "products of sets": (
        lambda m, x, y: (
            torch.cartesian_prod(x[0], y[0]),
            torch.cartesian_prod(x[:, 0], y[0], x[0, :2]),
            torch.cartesian_prod(x[0]),
        ),
        pairs,
    ),
    "vander": (
        lambda m, x: (
            torch.vander(x[0]),
            torch.vander(x[0], 3),
            torch.vander(x[0], 4, increasing=True),
            torch.vander(x[0], 1),
        ),
        rows,
    ),
    "bits read otherwise": (
        lambda m, x: (x.view(torch.int32), x.long().view(torch.float64), x.view(torch.float32)),
        rows,
    ),
    "views in blocks": (
        lambda m, x: x.view(x.shape[0], 2, 4, 3, 2, 2, 2).permute(0, 3, 5, 1, 2, 4, 6).flatten(3),
        images,
    ),
    "circular and negative pads": (
        lambda m, x: (
            nn.functional.pad(x, (1, 2, 3, 0), mode="circular"),
            nn.functional.pad(x, (-1, 2, 0, -3)),
            nn.functional.pad(x, (0, 0, 1, x.shape[1] // 2), value=-1.5),
        ),
        images,
    ),
    "pads of other dtypes": (
        lambda m, i: (
            nn.functional.pad(i, (1, 2), value=3),
            nn.functional.pad(i > 0, (1, 0), value=True),
            nn.functional.pad(i.half(), (1, 0)),
        ),
        integers,
    ),
}

CREATION: dict[str, Case] = {
    "filled": (
        lambda m, x: (
            torch.full((2, x.shape[0]), x.shape[0]),
            torch.full((2,), x.shape[0] / 3),
            torch.full((), 2),
            torch.full_like(x, True),
            x.new_full((x.shape[0],), 1.5),
            torch.full((2,), x.shape[0] > 2),
            torch.ones(2, 3, dtype=torch.int8),
            torch.zeros_like(x, dtype=torch.bool),
            torch.empty_like(x).fill_(2),
            x.new_ones(1, dtype=torch.float64),
            torch.empty(x.shape[0], 2).zero_(),
        ),
        rows,
    ),
    "arange": (
        lambda m, x: (
            torch.arange(5),
            torch.arange(2, 9, 3),
            torch.arange(9, 2, -3),
            torch.arange(0.5, 2.2, 0.1),
            torch.arange(3.5, dtype=torch.int64),
            torch.arange(5, dtype=torch.float16),
            torch.arange(100, 300, dtype=torch.int32),
            torch.arange(3, 3),
            torch.arange(0, 1, 0.3, dtype=torch.float64),
        ),
        rows,
    ),
    "arange of a dynamic size": (
        lambda m, x: (
            torch.arange(x.shape[0]),
            torch.arange(1, x.shape[0] + 1, dtype=torch.float32),
            torch.arange(0, x.shape[0] * 5, 3),
            torch.arange(x.shape[0] * 2, 0, -2),
            torch.arange(0, x.shape[0], 0.5),
            torch.arange(x.shape[0] * 2 - 1, -1, -1),
        ),
        rows,
    ),
    "linspace": (
        lambda m, x: (
            torch.linspace(0, 1, 7),
            torch.linspace(-3, 8, 1),
            torch.linspace(5, -5, 6, dtype=torch.float64),
            torch.linspace(0, 9, 5, dtype=torch.int32),
            torch.logspace(-1, 2, 5),
            torch.logspace(0, 4, 5, base=2),
            torch.linspace(x[0, 0], x[0, 1], 8),
            torch.linspace(0, x[0, 1], 5),
            torch.linspace(x[0, 0], 4, 1),
        ),
        rows,
    ),
    "logspace of tensors": (lambda m, x: torch.logspace(x[0, 0], 1, 5, base=2.0), rows),
    "eye": (
        lambda m, x: (
            torch.eye(4),
            torch.eye(3, 5, dtype=torch.int64),
            torch.eye(x.shape[0]),
            torch.eye(x.shape[0], 4, dtype=torch.bool),
            torch.eye(12),
        ),
        rows,
    ),
    "triangles of positions": (
        lambda m, x: (torch.tril_indices(4, 3), torch.triu_indices(4, 5, 1), x[0][torch.tril_indices(3, 3, -1)]),
        rows,
    ),
    "signal windows": (
        lambda m, x: (
            torch.hann_window(8),
            torch.hann_window(8, periodic=False),
            torch.hamming_window(8, True, 0.5, 0.4),
            torch.blackman_window(9),
            torch.bartlett_window(7, False),
            torch.kaiser_window(6, False, 8.0),
        ),
        rows,
    ),
    "shapes as tensors": (
        lambda m, x: (
            tensor(x.shape[0]),
            tensor([x.shape[0], 2]),
            tensor(x.shape[1]),
            torch.scalar_tensor(x.shape[0]),
            tensor([2.5, 3.0]),
        ),
        sequences,
    ),
}

SIZES: dict[str, Case] = {
    "square root of a static size": (lambda m, x: x / x.shape[1] ** 0.5, rows),
    "powers": (
        lambda m, x: (x * x.shape[0] ** 0.5, x / x.shape[0] ** -0.5, x * x.shape[0] ** 2, x + 2 ** x.shape[0]),
        rows,
    ),
    "true division": (
        lambda m, x: (x * (x.shape[0] / 7), x + x.shape[0] / x.shape[1], x.sum() / (x.shape[0] / 2)),
        rows,
    ),
    "floor division and remainder": (
        lambda m, x: (x * (x.shape[0] // 2), x + x.shape[0] % 2, x - (-x.shape[0]) // 2, x + (1 - x.shape[0]) % 3),
        rows,
    ),
    "rounding": (
        lambda m, x: (
            x * torch.sym_int(x.shape[0] / 3),
            x + round(x.shape[0] / 2),
            x[:, : (x.shape[0] + 1) // 2 - (x.shape[0] + 1) // 2 + 3],
        ),
        rows,
    ),
    "math": (
        lambda m, x: (
            x * math.sqrt(x.shape[1]),
            x * math.ceil(x.shape[0] / 2),
            x * math.floor(x.shape[0] * 0.4),
            x * torch.sym_sqrt(x.shape[0]),
        ),
        rows,
    ),
    "largest and smallest": (
        lambda m, x: (x * torch.sym_max(x.shape[0], 4), x + torch.sym_min(x.shape[0], 4), x * max(x.shape[1], 2)),
        rows,
    ),
    "choices": (lambda m, x: (x * torch.sym_ite(x.shape[0] > 2, 3, 5), x + torch.sym_float(x.shape[0])), rows),
    "comparisons as numbers": (lambda m, x: torch.full((2,), x.shape[0] >= 3) & (x[0, :2] > 0), rows),
    "products in shapes": (
        lambda m, x: (
            x.reshape(x.shape[0] * 5, -1),
            x.reshape(-1),
            x.new_zeros(x.shape[0] * x.shape[1] + 1),
            x.numel() * x,
        ),
        sequences,
    ),
    "sizes in a scalar of a half": (lambda m, x: x.half() / x.shape[0], rows),
    "attention by its size": (
        lambda m, x: torch.softmax(x @ x.mT / math.sqrt(x.size(-1)), -1) * (1 / x.size(0)),
        sequences,
    ),
}


def written(
    view: Callable[[torch.Tensor], torch.Tensor], write: Callable[[torch.Tensor], Any] | None = None
) -> Callable[..., Any]:
    """A copy of x that is written through a view, and the view."""

    def function(m: Any, x: torch.Tensor) -> Any:
        y = x * 1
        part = view(y)
        (write or (lambda v: v.mul_(3).add_(1)))(part)
        return y, part + 0

    return function


def base_written(view: Callable[[torch.Tensor], Any]) -> Callable[..., Any]:
    """Views of a tensor that is written afterwards."""

    def function(m: Any, x: torch.Tensor) -> Any:
        y = x * 1
        parts = view(y)
        y.mul_(3).add_(1)
        return tuple(p + 0 for p in (parts if isinstance(parts, tuple | list) else (parts,)))

    return function


def two_parts(m: Any, x: torch.Tensor) -> Any:
    y = x * 1
    a, b, c = y.split([1, 2, 2], 1)
    b.mul_(2)
    a.add_(b[:, :1] * 0 + y.amax())
    y[:, 4].zero_()
    return y, a + 0, b + 0, c + 0


WRITES: dict[str, Case] = {
    "steps": (written(lambda y: y[:, ::2]), sequences),
    "steps from a place": (written(lambda y: y[:, 1:4:2, -5::3]), sequences),
    "augmented steps": (lambda m, x: (lambda y: (y[:, 1::2].add_(1), y[:, :, ::4].mul_(2), y)[2])(x * 1), sequences),
    "an ellipsis": (written(lambda y: y[..., 0], lambda v: v.fill_(1)), sequences),
    "an empty slice": (written(lambda y: y[:, 3:1]), sequences),
    "beyond the end": (written(lambda y: y[:, 2:99]), sequences),
    "a negative end": (written(lambda y: y[:, -4:-1]), sequences),
    "a dynamic end": (written(lambda y: y[:, : y.shape[1] // 2, 1:]), sequences),
    "the last of the batch": (written(lambda y: y[-1]), sequences),
    "narrow": (written(lambda y: y.narrow(1, 1, 3)), sequences),
    "narrow from the end": (written(lambda y: y.narrow(2, -4, 2)), sequences),
    "a part of a split": (written(lambda y: y.split(2, 1)[1]), sequences),
    "the last part of a split": (written(lambda y: y.split(2, 1)[2]), sequences),
    "a part of given sizes": (written(lambda y: y.split([1, 3, 2], -1)[1]), sequences),
    "a chunk": (written(lambda y: y.chunk(3, 2)[0]), sequences),
    "a part of tensor_split": (written(lambda y: y.tensor_split((1, 3), 1)[1]), sequences),
    "a part of hsplit": (written(lambda y: torch.hsplit(y, 5)[3]), sequences),
    "one of unbind": (written(lambda y: y.unbind(1)[2]), sequences),
    "one of the last axis": (written(lambda y: y.unbind(-1)[5]), sequences),
    "a view of a part": (written(lambda y: y.split(2, 1)[1][:, 0, 2:]), sequences),
    "a diagonal": (written(lambda y: y.diagonal(1, 1, 2)), sequences),
    "a diagonal below, axes turned": (written(lambda y: y.diagonal(-1, 2, 1)), sequences),
    "the diagonal of the batch": (written(lambda y: y.diagonal(0, 0, 2)[:, :1]), lambda b: (torch.randn(b, 5, 1),)),
    "mT": (written(lambda y: y.mT[:, 1]), sequences),
    "T": (written(lambda y: y[0].T[1]), sequences),
    "movedim": (written(lambda y: y.movedim(0, -1)[2]), sequences),
    "swapdims": (written(lambda y: y.swapdims(0, 2)[2]), sequences),
    "unflatten": (written(lambda y: y.unflatten(2, (2, 3))[:, :, 1]), sequences),
    "an expand of the same sizes": (written(lambda y: y.expand(-1, -1, -1)[:, 0]), sequences),
    "an expand by an axis of 1": (written(lambda y: y.expand(1, -1, -1, -1)[0, :, 1]), sequences),
    "atleast_3d": (written(lambda y: torch.atleast_3d(y)[:, 1]), rows),
    "ravel that is a view": (written(lambda y: y.ravel()[:2]), sequences),
    "dropout that gives itself back": (written(lambda y: nn.functional.dropout(y, 0.5, training=False)), sequences),
    "columns of an index": (
        lambda m, x: (lambda y: (y[:, 1:].__setitem__((slice(None), tensor([0, 3])), 7.0), y)[1])(x * 1),
        sequences,
    ),
    "columns of a mask": (
        lambda m, x: (
            lambda y: (y[:, :, 1].__setitem__((slice(None), tensor([True, False, True, False, True])), 7.0), y)[1]
        )(x * 1),
        sequences,
    ),
    "a row by a number in a tensor": (lambda m, x: (lambda y: (y[:, int(tensor(2))].add_(1), y)[1])(x * 1), sequences),
    "two parts, each seen by the others": (two_parts, sequences),
    "a base under parts": (base_written(lambda y: (*y.split(2, 1), *y.unbind(1), *y.chunk(2, 2))), sequences),
    "a base under a diagonal": (
        base_written(lambda y: (y.diagonal(0, 1, 2), y.mT, y.T, y[:, ::2], y.expand(2, -1, -1, -1))),
        sequences,
    ),
    "a base under windows": (
        base_written(lambda y: (y.unfold(1, 2, 1), y.movedim(1, 0), y.narrow(1, 1, 2))),
        sequences,
    ),
    "a base under meshgrid": (base_written(lambda y: torch.meshgrid(y[0], y[1], indexing="ij")), rows),
    "a base under broadcasts": (base_written(lambda y: torch.broadcast_tensors(y[:, :1], y)), rows),
    "fill_diagonal_ through a view": (written(lambda y: y[0], lambda v: v.fill_diagonal_(9)), sequences),
    "index_add_ through a view": (
        written(lambda y: y[:, 1:], lambda v: v.index_add_(1, tensor([0, 0]), v[:, 2:] * 2)),
        sequences,
    ),
    "scatter_ and masked_fill_ through a view": (
        written(
            lambda y: y[:, ::2],
            lambda v: (v.scatter_(2, tensor([[[1]]]).expand(1, 3, 1), 5.0), v.masked_fill_(v > 2, 0)),
        ),
        sequences,
    ),
    "masked_scatter_ through a view": (
        written(lambda y: y[:, 1], lambda v: v.masked_scatter_(v > 0, torch.arange(99.0))),
        sequences,
    ),
}

TABLES = {"SHAPES": SHAPES, "CREATION": CREATION, "SIZES": SIZES, "WRITES": WRITES}
CASES = {f"{table}: {name}": case for table, cases in TABLES.items() for name, case in cases.items()}
# what torch exports for one size only, or takes only at that size
FIXED = {"SHAPES: diag"}


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str) -> None:
    check_operator(*CASES[name], batches=(3,) if name in FIXED else (3, 2, 5))


# --- derivatives


class Weighted(nn.Module):
    """A function of a weight [4, 5, 3] and the input."""

    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(-7, 7, 60).sin().reshape(4, 5, 3))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.weight * x[0, 0])


GRADIENTS: dict[str, Callable[..., Any]] = {
    "overlapping windows": lambda w: w.unfold(1, 3, 1).square(),
    "as_strided that overlaps": lambda w: w.clone().as_strided((3, 4), (2, 1), 3).square(),
    "repeats": lambda w: (
        w.repeat(2, 1, 1).square(),
        w.repeat_interleave(3, 1).square(),
        w.expand(2, 4, 5, 3).square(),
    ),
    "diagonals": lambda w: (w.diagonal(1, 0, 1).square(), w[0, 0].diag_embed(-1).square(), w[0].diag(1).square()),
    "rolls and turns": lambda w: (
        w.roll(2, 1)[:, 0].square(),
        w.rot90(1, (0, 2))[0].square(),
        w.flip(1)[:, 1].square(),
    ),
    "pads": lambda w: (nn.functional.pad(w, (2, 1), mode="circular").square(), nn.functional.pad(w, (-1, 2)).square()),
    "writes through parts": lambda w: (
        lambda y: (y.narrow(1, 2, 2).mul_(3), y.diagonal(0, 0, 1).mul_(w.diagonal(1, 0, 1)[:, :1]), y.square())[2]
    )(w * 1),
    "writes through steps": lambda w: (lambda y: (y[:, ::2].mul_(w[:, :3]), y.square())[1])(w * 1),
    "linspace between": lambda w: torch.linspace(w[0, 0, 0], w[0, 0, 1], 5, dtype=w.dtype) * w[0, 0, 2],
    "meshgrid": lambda w: torch.stack(torch.meshgrid(w[0, 0], w[0, 1], indexing="xy")).square(),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_derivative(name: str) -> None:
    check_layer_in_training(lambda: Weighted(GRADIENTS[name]), rows)


# --- dropout gives its argument itself while it is not active


def test_a_write_to_the_result_of_dropout_reaches_its_argument_only_where_that_is_not_seen() -> None:
    unseen = Calls(lambda m, x: m.drop(m.fc(x)).add_(1).mul_(2), drop=nn.Dropout(0.5), fc=nn.Linear(6, 6))
    check_outputs(unseen, ix.from_torch(unseen, rows(3)), rows(5))
    seen = Calls(lambda m, x: (lambda y: m.drop(y).add_(1) * y)(m.fc(x)), drop=nn.Dropout(0.5), fc=nn.Linear(6, 6))
    with pytest.raises(ix.UnsupportedError, match="writes through aten.dropout.default"):
        ix.from_torch(seen, rows(3))


# --- random numbers

N = 4000
RANDOM: dict[str, tuple[Callable[..., Any], tuple[float, float, float, float]]] = {  # lowest, highest, mean, deviation
    "rand": (lambda x: torch.rand(N), (0, 1, 0.5, 12**-0.5)),
    "rand_like": (lambda x: torch.rand_like(x), (0, 1, 0.5, 12**-0.5)),
    "randn": (lambda x: torch.randn(x.shape[0], 2), (-6, 6, 0, 1)),
    "randn_like": (lambda x: torch.randn_like(x, dtype=torch.float64), (-6, 6, 0, 1)),
    "randint": (lambda x: torch.randint(5, (N,)).float(), (0, 4, 2, 2**0.5)),
    "randint from": (lambda x: torch.randint(-2, 3, (N,)).float(), (-2, 2, 0, 2**0.5)),
    "randint_like": (lambda x: torch.randint_like(x, 5), (0, 4, 2, 2**0.5)),
    "randint_like from": (lambda x: torch.randint_like(x, 3, 8), (3, 7, 5, 2**0.5)),
    "bernoulli": (lambda x: torch.bernoulli(x * 0 + 0.3), (0, 1, 0.3, 0.21**0.5)),
    "bernoulli of p": (lambda x: torch.bernoulli(x, 0.3), (0, 1, 0.3, 0.21**0.5)),
    "bernoulli_": (lambda x: torch.empty_like(x).bernoulli_(0.3), (0, 1, 0.3, 0.21**0.5)),
    "normal": (lambda x: torch.normal(2.0, 0.5, (N,)), (-1, 5, 2, 0.5)),
    "normal of tensors": (lambda x: torch.normal(x * 0 + 2, x * 0 + 0.5), (-1, 5, 2, 0.5)),
    "normal_": (lambda x: torch.empty_like(x).normal_(2, 0.5), (-1, 5, 2, 0.5)),
    "uniform_": (lambda x: torch.empty_like(x).uniform_(-1, 3), (-1, 3, 1, 4 * 12**-0.5)),
    "exponential_": (lambda x: torch.empty_like(x).exponential_(2.0), (1e-9, 20, 0.5, 0.5)),
    "multinomial": (lambda x: torch.multinomial(tensor([0.0, 1.0, 3.0]), N, True).float(), (1, 2, 1.75, 0.1875**0.5)),
    "multinomial without putting back": (
        lambda x: torch.multinomial(torch.ones(N, 2), 2).sum(1).float(),
        (1, 1, 1, 0),
    ),
    "randperm": (lambda x: torch.randperm(N).float() / N, (0, 1, 0.5, 12**-0.5)),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers(name: str) -> None:
    draw, (low, high, mean, deviation) = RANDOM[name]
    x = torch.ones(N, 1)
    model = ix.from_torch(Calls(lambda m, x: draw(x)), x, None)
    first, states = model.layer.apply(model.params, model.states, x.numpy())
    second, _ = model.layer.apply(model.params, states, x.numpy())
    assert first.dtype == draw(x).numpy().dtype and first.shape == tuple(draw(x).shape)
    first = np.asarray(first, np.float64)
    assert first.min() >= low and first.max() <= high
    assert abs(first.mean() - mean) <= 5 * deviation / N**0.5
    assert abs(first.std() - deviation) <= 0.1 * deviation
    if deviation:
        assert not np.array_equal(first, np.asarray(second))


# --- refused

REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "bits of another size": (lambda x: x.view(torch.int8), "of another size"),
    "as_strided of a transpose": (lambda x: x.t().as_strided((2, 2), (1, 1)), "not contiguous"),
    "a write to windows": (lambda x: (x * 1).unfold(1, 2, 2).mul_(2), "writes through aten.unfold"),
    "a wide range of random integers": (lambda x: torch.randint(2**40, (2,)), "random integers of a range"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, message = REFUSED[name]
    with pytest.raises(ix.UnsupportedError, match=message):
        ix.from_torch(Calls(lambda m, x: function(x)), rows(3))
