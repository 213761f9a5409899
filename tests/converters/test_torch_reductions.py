"""Reductions, scans, order statistics and linear algebra of ATen: outputs on both backends, derivatives against
PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import interlux as ix
from tests.helpers import Calls, check_outputs
from tests.torch_cases import Inputs, check_operator, rows, sequences
from tests.torch_derivatives import check_derivative

INF, NAN = math.inf, math.nan
L = torch.linalg


def ties(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randint(-2, 3, (b, 7)).float(),)


def integers(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randint(-3, 4, (b, 7)),)


def kinds_of_integers(b: int) -> tuple[torch.Tensor, ...]:
    i = torch.randint(-9, 9, (b, 6)) * 10
    return i.int(), i.short(), i.char(), i.abs().byte(), i > 0


def halves(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(b, 200).half(),)


def odd(b: int) -> tuple[torch.Tensor, ...]:
    """Rows with NaN, infinities, zeros."""
    values = torch.tensor(
        [[1.0, NAN, -3, 2, NAN], [INF, 1, -INF, 0, 2], [0, -0.0, 0, 0, 0], [NAN] * 5, [4, 3, 2, 1, 0]]
    )
    return (values.repeat(b, 1),)


def matrices(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 4, 5), torch.randn(b, 5, 3)


def vectors(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b), torch.randn(b)


def points(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 4, 3), torch.randn(b, 5, 3)


def squares(b: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(b, 4, 4) / 2 + 3 * torch.eye(4), torch.randn(b, 4, 3)


def scalars(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.randn(()),)


def empty(b: int) -> tuple[torch.Tensor, ...]:
    return (torch.zeros(3, 0),)


REDUCTIONS: dict[str, tuple[Callable[..., Any], Inputs]] = {
    "sums": (
        lambda m, x: ((x + 3).sum(), x.sum(-2), (x + 3).sum((0, -1), keepdim=True), (x + 2).sum([]), x.nansum(1)),
        sequences,
    ),
    "sums of small integers": (
        lambda m, i, s, c, u, p: (i.sum(), s.sum(1), c.sum(1, dtype=torch.int8), u.sum(1, dtype=torch.uint8), p.sum(0)),
        kinds_of_integers,
    ),
    "means with dtypes": (
        lambda m, i, s, c, u, p: (i.mean(1, dtype=torch.float32), p.float().mean(), u.sum(1, dtype=torch.float64)),
        kinds_of_integers,
    ),
    "products": (
        lambda m, x: (x.prod(), x.prod(1), x.prod(-1, keepdim=True), x.prod(1, dtype=torch.float64)),
        sequences,
    ),
    "products of integers": (lambda m, i: (i.prod(1), i.prod(), (i > 0).prod(1), i.int().prod(0)), integers),
    "halves": (lambda m, h: (h.sum(1), h.mean(1), h.var(1), h.norm(dim=1), h.logsumexp(1), h.std()), halves),
    "more halves": (lambda m, h: (h.amax(1), *h.max(1), h.cumsum(1)[:, -1], h.softmax(1), h.median(1).values), halves),
    "extremes": (
        lambda m, x: (x.amax((1, 2)), x.amin((0, 1), keepdim=True), x.amax(), x.max(), x.min(), *x.aminmax(dim=1)),
        sequences,
    ),
    "aminmax of all": (lambda m, x: (*x.aminmax(), *x.aminmax(dim=-1, keepdim=True)), sequences),
    "extremes of small integers": (
        lambda m, i, s, c, u, p: (i.amax(1), s.amin(1), c.max(), u.amax(0), p.amax(1), *s.max(1), *p.min(1)),
        kinds_of_integers,
    ),
    "positions at ties": (lambda m, x: (x.argmax(1), x.argmin(-1, keepdim=True), x.argmax(), *x.max(1)), ties),
    "positions in all": (lambda m, x: (x.argmax(keepdim=True), x.argmin(None)), ties),
    "quantifiers": (
        lambda m, x: (x.any(), x.all(), x.any(1), x.all((0, 1)), torch.any(x, (1,), True), x.all(1, keepdim=True)),
        ties,
    ),
    "quantifiers of bytes": (lambda m, i, s, c, u, p: (u.any(), u.all(1), p.any((0, 1)), p.all(1)), kinds_of_integers),
    "counts": (lambda m, x: (x.count_nonzero(), x.count_nonzero(1), x.count_nonzero((0, 1))), ties),
    "logsumexp": (
        lambda m, x: (x.logsumexp(1), x.logsumexp((1, 2), keepdim=True), torch.special.logsumexp(x * 300, -1)),
        sequences,
    ),
    "logsumexp of infinities": (lambda m, x: (x.logsumexp(1), (x * 0 - INF).logsumexp(0)), ties),
    "spread": (
        lambda m, x: (
            x.var(),
            x.std(),
            x.var(1, unbiased=False),
            x.var((0, 2), correction=2.5),
            x.std(-1, keepdim=True),
        ),
        sequences,
    ),
    "spread and mean": (
        lambda m, x: (
            *torch.var_mean(x + 3),
            *torch.std_mean(x + 3, 1),
            *torch.var_mean(x + 3, (1, 2), correction=0, keepdim=True),
            *torch.std_mean(x + 3, -1, unbiased=False),
        ),
        sequences,
    ),
    "spread of one": (lambda m, x: (x[:, :1].var(1), x[:, :1].std(1), x[:, :1].var(1, correction=0)), rows),
    "spread of constants": (lambda m, x: (torch.ones_like(x).std(1), (x * 0 + 3).var(1)), rows),
    "NaN skipped": (lambda m, x: (x.nansum(1), x.nanmean(1), x.nansum(), x.nanmean((0, 1)), x.nansum(1, True)), odd),
    "NaN kept": (lambda m, x: (x.sum(1), x.mean(1), x.prod(1), x.var(1), x.any(1), x.all(1)), odd),
    # norms
    "norms": (
        lambda m, x: (*(L.vector_norm(x, p, dim=1) for p in (0, 0.5, 1, 1.5, 2, 3, INF, -INF, -1)), x.norm()),
        sequences,
    ),
    "norms at zeros": (lambda m, x: tuple(L.vector_norm(x, p, dim=1) for p in (0, 0.5, 2, 3, INF, -INF, -1, -2)), ties),
    "norms along axes": (
        lambda m, x: (
            x.norm(3, (1, 2)),
            x.norm(1, -1, True),
            L.norm(x),
            L.norm(x, 2, 1),
            x.norm(dim=1, dtype=torch.float64),
        ),
        sequences,
    ),
    "norms of matrices": (
        lambda m, x: (
            *(L.matrix_norm(x, p) for p in ("fro", 1, -1, INF, -INF)),
            L.matrix_norm(x, 1, (0, 1), keepdim=True),
            L.norm(x[0], INF),
            L.norm(x, "fro", (0, 2)),
            L.norm(x, -1, (2, 1)),
        ),
        sequences,
    ),
    "distances": (lambda m, x: (torch.dist(x, x * 2), torch.dist(x, x + 1, 1), torch.dist(x, x * 0, 0)), rows),
    "renorm": (lambda m, x: (torch.renorm(x, 2, 0, 1.5), torch.renorm(x, 1, -1, 3.0)), sequences),
    "normalize": (lambda m, x: (F.normalize(x), F.normalize(x, 1, -1), F.normalize(x * 0)), sequences),
    # scans
    "cumsum": (lambda m, x: (x.cumsum(1), x.cumsum(-1, dtype=torch.float64), x.cumsum(0)), sequences),
    "cumsum of integers": (
        lambda m, i, s, c, u, p: (i.cumsum(1), s.cumsum(0), c.cumsum(1, dtype=torch.int8), p.cumsum(1)),
        kinds_of_integers,
    ),
    "cumprod": (lambda m, x: (x.cumprod(1), x.cumprod(-1, dtype=torch.float64)), sequences),
    "cumprod of integers": (lambda m, i: (i.cumprod(1), (i > 0).cumprod(1)), integers),
    "cummax, cummin": (lambda m, x: (*x.cummax(1), *x.cummin(-1)), ties),
    "cummax of integers": (lambda m, i: (*i.cummax(1), *i.int().cummin(1)), integers),
    "cummax with NaN": (lambda m, x: (*x.cummax(1), *x.cummin(1)), odd),
    "logcumsumexp": (lambda m, x: (x.logcumsumexp(1), (x * 50).logcumsumexp(-1)), sequences),
    "logcumsumexp of infinities": (lambda m, x: x.logcumsumexp(1), odd),
    "diff": (
        lambda m, x: (x.diff(), x.diff(2, 1), x.diff(prepend=x[..., :1], append=x[..., :2] * 2), (x > 0).diff(dim=1)),
        sequences,
    ),
    "integrals": (
        lambda m, x: (
            torch.trapezoid(x, dx=0.5),
            torch.trapezoid(x, torch.arange(5.0) ** 2, dim=1),
            torch.trapz(x, x.cumsum(-1)),
            torch.cumulative_trapezoid(x, dim=1),
            torch.cumulative_trapezoid(x, torch.arange(6.0) ** 2),
        ),
        sequences,
    ),
    # order statistics
    "median": (lambda m, x: (x.median(), *x.median(1), *x.median(-1, keepdim=True), x[:, :2].median()), sequences),
    "median of even counts": (lambda m, x: (x.median(1)[0], x.nanmedian(1).values, x.nanmedian()), rows),
    "median with NaN": (lambda m, x: (x.median(1)[0], x.nanmedian(1)[0], x.median(), x.nanmedian()), odd),
    "median of integers": (lambda m, i: (i.median(), i.median(1).values, i.int().median()), integers),
    "quantile": (
        lambda m, x: (
            x.quantile(0.3),
            x.quantile(0.5, 1),
            x.quantile(torch.tensor([0.0, 0.25, 1.0]), -1, keepdim=True),
            x.quantile(torch.tensor([0.1, 0.9]), 1),
            x.quantile(torch.tensor([0.7])),
        ),
        sequences,
    ),
    "quantile, interpolations": (
        lambda m, x: tuple(
            x.quantile(0.33, 1, interpolation=how) for how in ("lower", "higher", "nearest", "midpoint", "linear")
        ),
        sequences,
    ),
    "quantile with NaN": (lambda m, x: (x[[0, 2, 3, 4]].quantile(0.3, 1), x[[0, 2, 3, 4]].nanquantile(0.3, 1)), odd),
    "nanquantile": (lambda m, x: (x[2:].nanquantile(torch.tensor([0.2, 0.9]), 1, True), x[2:].nanquantile(0.5)), odd),
    # softmax
    "softmax": (
        lambda m, x: (
            x.softmax(0),
            x.log_softmax(1),
            x.softmax(-1, dtype=torch.float64),
            F.softmin(x, 1),
            torch.special.softmax(x, 1),
            torch.special.log_softmax(x * 100, 1),
        ),
        sequences,
    ),
    "softmax of integers": (
        lambda m, i: (i.softmax(1, dtype=torch.float32), i.log_softmax(1, torch.float32)),
        integers,
    ),
    "softmax of infinities": (lambda m, x: x[1:2].clamp(max=5).softmax(1), odd),
    # scalars and nothing
    "scalars": (
        lambda m, x: (
            *(x.sum(), x.mean(), x.amax(), x.max(), *x.max(0), x.argmax(), x.any(), x.prod(0), x.logsumexp(0)),
            *(x.softmax(0), x.log_softmax(-1), x.cumsum(0), x.cumprod(0), *x.cummax(0), x.logcumsumexp(0), x.norm()),
            *(
                x.median(),
                *x.median(0),
                x.var(correction=0),
                x.quantile(0.5),
                x.count_nonzero(),
                x.argmin(0),
                x.norm(3),
            ),
        ),
        scalars,
    ),
    "nothing": (
        lambda m, x: (x.sum(), x.sum(1), x.prod(1), x.any(1), x.all(), x.mean(1), x.norm(dim=1), x.logsumexp(1)),
        empty,
    ),
    "more of nothing": (
        lambda m, x: (x.cumsum(1), x.nansum(), x.count_nonzero(1), x.var(1), x.exp(), x.softmax(1)),
        empty,
    ),
}


PRODUCTS: dict[str, tuple[Callable[..., Any], Inputs]] = {
    "matmul of ranks": (
        lambda m, x, y: (
            *(x @ y, x[0] @ y, x @ y[0], x[0, 0] @ y, x @ y[0, :, 0], x[0, 0] @ y[0, :, 0], x[0] @ y[0]),
            *(torch.mv(x[0], y[0, :, 0]), torch.dot(x[0, 0], y[0, :, 1]), torch.vdot(x[0, 1], y[0, :, 2])),
            *(x[:, None] @ y[None], torch.linalg.matmul(x, y), torch.mm(x[0], y[0]), torch.bmm(x, y)),
        ),
        matrices,
    ),
    "matmul of integers": (
        lambda m, x, y: (
            (x * 9).long() @ (y * 9).long(),
            (x * 9).int()[0] @ (y * 9).int()[0],
            (x * 9).short() @ (y * 9).short(),
        ),
        matrices,
    ),
    "sums with products": (
        lambda m, x, y: (
            torch.addmm(x[0, :, :3], x[0], y[0], beta=0.5, alpha=2),
            torch.addmv(x[0, :, 0], x[0], y[0, :, 0], alpha=-1),
            torch.baddbmm(x[:, :, :3], x, y, beta=0.3, alpha=0.7),
            torch.addbmm(x[0, :, :3], x, y, alpha=2),
            torch.addr(x[0, :3, :2], x[0, 0, :3], y[0, 0, :2], beta=2, alpha=3),
            torch.addmm(x[0, :, :3] * NAN, x[0], y[0], beta=0),
            torch.addmm(torch.tensor(2.0), x[0], y[0]),
        ),
        matrices,
    ),
    "sums with products of integers": (
        lambda m, x, y: (
            torch.addmm((x[0, :, :3] * 9).long(), (x[0] * 9).long(), (y[0] * 9).long(), beta=2, alpha=3),
            torch.addr((x[0, :3, :2] * 9).int(), (x[0, 0, :3] * 9).int(), (y[0, 0, :2] * 9).int(), alpha=2),
        ),
        matrices,
    ),
    "outer products": (
        lambda m, x, y: (torch.outer(x, y), torch.ger(y, x), torch.inner(x, y), torch.kron(x, y)),
        vectors,
    ),
    "inner products": (
        lambda m, x, y: (torch.inner(x, y.mT), torch.inner(x[0], y[0, :, 0]), torch.inner(x, torch.tensor(2.0))),
        matrices,
    ),
    "kron": (lambda m, x, y: (torch.kron(x[0], y[0]), torch.kron(x, y[0]), torch.kron(x[0, 0], y)), matrices),
    "tensordot": (
        lambda m, x, y: (
            torch.tensordot(x, y, 0)[0],
            torch.tensordot(x, y[0], 1),
            torch.tensordot(x, y, ([0, 2], [0, 1])),
            torch.tensordot(x, y, ([-1], [1])),
            torch.tensordot(x[0], y[0, :, :1], ([0], [1])),
        ),
        matrices,
    ),
    "chains": (
        lambda m, x, y: (
            torch.chain_matmul(x[0], y[0], y[0].T),
            L.multi_dot([x[0, 0], y[0], y[0].T]),
            L.multi_dot([x[0], y[0], y[0, 0]]),
            L.multi_dot([x[0, 0], y[0], y[0, 0]]),
        ),
        matrices,
    ),
    "einsum": (
        lambda m, x, y: (
            torch.einsum("bij,bjk->bik", x, y),
            torch.einsum("...ij,...jk", x, y),
            torch.einsum("bij, bjk -> k", x + 2, y + 2),
            torch.einsum("bij->bji", x),
            torch.einsum("bij->", x + 2),
            torch.einsum("b i j, j -> i b", x, y[0, :, 0]),
        ),
        matrices,
    ),
    "einsum, more": (
        lambda m, x, y: (
            torch.einsum("...ii->...i", x @ x.mT),
            torch.einsum("bii", x @ x.mT),
            torch.einsum("Bij,Bjk->Bik", x, y),
            torch.einsum(x, [0, 1, 2], y, [0, 2, 3], [0, 3]),
            torch.einsum("i,j,k->kji", x[0, :, 0], x[0, 0], y[0, 0]),
            torch.einsum("ij,jk,kl->il", x[0], y[0], y[0].T),
        ),
        matrices,
    ),
    "einsum of integers": (lambda m, i: torch.einsum("bi,bj->ij", i, i), integers),
    "bilinear": (lambda m, x: F.bilinear(x, x[..., :5], torch.ones(4, 6, 5).cumsum(1), torch.arange(4.0)), sequences),
    "cross": (
        lambda m, x, y: (torch.cross(x, y[:, :4], -1), L.cross(x[:, :1], y), L.cross(x.mT, y[:, :4].mT, dim=1)),
        points,
    ),
    "traces": (
        lambda m, x, y: (
            x[0].trace(),
            y[0].trace(),
            (x[0] * 9).long().trace(),
            L.vecdot(x, x * 2),
            L.vecdot(y, y, dim=1),
        ),
        matrices,
    ),
    "cdist": (lambda m, x, y: tuple(torch.cdist(x, y, p) for p in (2.0, 1.0, INF, 0.0, 3.0)), points),
    "cdist broadcast": (lambda m, x, y: torch.cdist(x, y[0]), points),
    "pairwise distances": (
        lambda m, x, y: (
            F.pairwise_distance(x, y[:, :4]),
            F.pairwise_distance(x, y[:, :1], 1, 1e-3, True),
            F.pdist(x[0]),
            F.pdist(x[0], 1),
        ),
        points,
    ),
    "cosine_similarity": (
        lambda m, x, y: (
            F.cosine_similarity(x, y[:, :4]),
            F.cosine_similarity(x, y[:, :1], -1),
            F.cosine_similarity(x * 0, y[:, :4], 2, 1e-3),
        ),
        points,
    ),
    "cartesian product": (lambda m, x, y: (torch.cartesian_prod(x, y), torch.cartesian_prod(x)), vectors),
    "matrix_power": (
        lambda m, x, y: (*(L.matrix_power(x, n) for n in (0, 1, 2, 5, -2)), torch.matrix_power(x[0], 3)),
        squares,
    ),
    "inverses": (lambda m, x, y: (L.inv(x), torch.inverse(x[0])), squares),
    "solutions": (
        lambda m, x, y: (L.solve(x, y), L.solve(x, y[..., 0]), L.solve(x, y.mT, left=False), L.solve(x[0], y[0, :, 0])),
        squares,
    ),
    "pivots": (lambda m, x, y: (L.inv(x[:, [1, 0, 3, 2]]), L.solve(x[:, [3, 0, 1, 2]], y)), squares),
    "triangular solutions": (
        lambda m, x, y: (
            L.solve_triangular(x.triu(), y, upper=True),
            L.solve_triangular(x, y, upper=False, unitriangular=True),
            L.solve_triangular(x.tril(), y.mT, upper=False, left=False),
        ),
        squares,
    ),
    "cholesky": (lambda m, x, y: (L.cholesky(x @ x.mT), L.cholesky(x[0] @ x[0].T + 1, upper=True)), squares),
    "solutions from factors": (
        lambda m, x, y: (
            torch.cholesky_solve(y, x.tril()),
            torch.cholesky_solve(y, x.triu(), upper=True),
            torch.cholesky_inverse(x[0].tril()),
        ),
        squares,
    ),
    "determinants": (lambda m, x, y: (L.det(x[:, :2, :2]), torch.det(x[0, :2, 1:3])), squares),
    "logarithms of determinants": (
        lambda m, x, y: (
            *L.slogdet(x),
            *torch.slogdet(x[:, [1, 0, 2, 3]]),
            torch.logdet(x @ x.mT + torch.eye(4)),
            torch.logdet(-x[0]),
        ),
        squares,
    ),
}
FIXED = {
    "scalars",
    "nothing",
    "more of nothing",
    "aminmax of all",
    "positions in all",
    "cartesian product",
    "einsum, more",
}
FIXED |= {"outer products", "kron", "quantile with NaN", "nanquantile", "quantile", "norms of matrices"}


def check(table: dict[str, tuple[Callable[..., Any], Inputs]], name: str) -> None:
    check_operator(*table[name], batches=(3,) if name in FIXED else (3, 2))


@pytest.mark.filterwarnings("ignore:(var|std):UserWarning")  # torch's own, about one element and none
@pytest.mark.parametrize("name", REDUCTIONS)
def test_reduction(name: str) -> None:
    check(REDUCTIONS, name)


@pytest.mark.parametrize("name", PRODUCTS)
def test_product(name: str) -> None:
    check(PRODUCTS, name)


# --- derivatives

TABLE = torch.tensor([[1.0, 3, 3, -2, 0], [0, 0, 0, 0, 0], [2, -3, 1, 5, 5], [4, 1, -4, 2, 0.5]], dtype=torch.float64)
SQUARE = torch.tensor(
    [[4.0, 1, 0.5, 0.2], [1, 3, 0.1, 0.7], [0.5, 0.1, 5, 0.3], [0.2, 0.7, 0.3, 2]], dtype=torch.float64
)
OTHER = torch.linspace(-2, 3, 12, dtype=torch.float64).reshape(4, 3)

DERIVATIVES: dict[str, tuple[Callable[..., Any], torch.Tensor]] = {
    "extremes at ties": (
        lambda w: (w.amax(1), w.amin((0, 1)), w.max(), *w.max(1), *w.min(0), *w.aminmax(dim=1)),
        TABLE,
    ),
    "norms with zeros": (lambda w: tuple(L.vector_norm(w, p, dim=1) for p in (0, 1, 1.5, 2, 3, INF, -INF)), TABLE),
    "norms below 1": (lambda w: L.vector_norm(w, 0.5, dim=1), TABLE[2:3, :4]),
    "norms of matrices": (lambda w: tuple(L.matrix_norm(w, p) for p in ("fro", 1, -1, INF, -INF)), SQUARE),
    "products with zeros": (lambda w: (w.prod(1), w.prod(), w.cumprod(1), w.cumprod(0)), TABLE),
    "spread": (
        lambda w: (w.var(1), w.std(1), *torch.std_mean(w, 0), *torch.var_mean(w), w.std(1, correction=0)),
        TABLE,
    ),
    "sums": (lambda w: (w.nansum(1), w.nanmean(1), w.cumsum(1), w.logsumexp(1), w.logcumsumexp(1)), TABLE),
    "running extremes": (lambda w: (w.cummax(1)[0], w.cummin(0)[0]), TABLE),
    "medians": (lambda w: (w.median(), w.median(1)[0], w.nanmedian(), w[0].median()), SQUARE + OTHER[:, :1]),
    "median at ties": (lambda w: (w.median(), w.nanmedian()), TABLE),
    "quantiles": (lambda w: (w.quantile(0.3, 1), w.quantile(0.77), w.nanquantile(0.4, 0)), SQUARE + OTHER[:, :1]),
    "softmax": (lambda w: (w.softmax(1), w.log_softmax(0)), TABLE),
    "renorm": (lambda w: torch.renorm(w, 2, 0, 3.0), TABLE),
    "similarity of nothing": (lambda w: F.cosine_similarity(w, w.flip(0) + 1, 1, 0.5), TABLE),
    "similarities": (lambda w: (F.cosine_similarity(w, w.flip(1)), F.pairwise_distance(w, w.flip(1))), SQUARE),
    "distances with zeros": (lambda w: (torch.cdist(w, w), torch.cdist(w, w, 1.0), torch.cdist(w, w + 1, 3.0)), SQUARE),
    "sums with products": (lambda w: (torch.addmm(w, w, w, beta=0.5, alpha=2), torch.addr(w, w[0], w[1])), SQUARE),
    "chains": (lambda w: (L.multi_dot([w, w, w[0]]), torch.kron(w, w), torch.tensordot(w, w, 2), w.trace()), SQUARE),
    "einsum": (lambda w: (torch.einsum("ij,kj,k->i", w, w, w[0]), torch.einsum("ii->i", w)), SQUARE),
    "bilinear": (lambda w: F.bilinear(OTHER, OTHER, w[:, :3, None] * OTHER[0], w[:, 0]), SQUARE),
    "cross": (lambda w: L.cross(w[:, :3], OTHER), SQUARE),
    "powers": (lambda w: (L.matrix_power(w, 3), L.matrix_power(w, -1)), SQUARE),
    "solutions": (lambda w: (L.solve(w, OTHER), L.inv(w), L.solve_triangular(w.tril(), OTHER, upper=False)), SQUARE),
    "cholesky": (lambda w: L.cholesky(w @ w.T), SQUARE),
    "determinant": (lambda w: (L.det(w), torch.logdet(w), L.slogdet(w - 3)[1]), SQUARE),
    "solutions from factors": (
        lambda w: (torch.cholesky_solve(OTHER, w.tril()), torch.cholesky_inverse(w.tril())),
        SQUARE,
    ),
    "integrals": (
        lambda w: (torch.trapezoid(w, w.cumsum(1)), torch.cumulative_trapezoid(w, dim=0), w.diff(dim=0)),
        SQUARE,
    ),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivative(name: str) -> None:
    check_derivative(*DERIVATIVES[name])


def test_bilinear_layer() -> None:
    module = torch.nn.Bilinear(4, 3, 5).eval()
    given = torch.randn(6, 4), torch.randn(6, 3)
    model = ix.from_torch(module, given)
    check_outputs(module, model, (torch.randn(2, 4), torch.randn(2, 3)))


# --- what is refused

REFUSED: dict[str, tuple[Callable[..., Any], Inputs, str]] = {
    "singular values": (lambda m, x, y: L.matrix_norm(x, 2), matrices, "singular values"),
    "nuclear norm": (lambda m, x, y: L.matrix_norm(x, "nuc"), matrices, "singular values"),
    "mode": (lambda m, x, y: x.mode(), matrices, "mode"),
    "svd": (lambda m, x, y: L.svdvals(x), matrices, "svd"),
    "eigenvalues": (lambda m, x, y: L.eigvalsh(x), squares, "eigh|eigvals"),
    "large inverses": (lambda m, x: L.inv(x), lambda b: (torch.randn(33, 33),), "33 rows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, inputs, words = REFUSED[name]
    with pytest.raises(ix.UnsupportedError, match=words):
        ix.from_torch(Calls(function), inputs(3), None)


@pytest.mark.parametrize("function", [torch.cumprod, torch.cummax, torch.logcumsumexp])
def test_scan_along_a_dynamic_axis_is_refused(function: Callable[..., Any]) -> None:
    with pytest.raises(ix.UnsupportedError, match="dynamic size"):
        ix.from_torch(Calls(lambda m, x: function(x, 0)), rows(3))
