"""Sub-modules that cannot be imported, kept as code of PyTorch inside a model: `from_torch(…, opaque="wrap")`.

While a module is exported, each call of such a sub-module becomes one node of the program: the operator
`interlux::opaque` on the tensors among its arguments, its parameters and its buffers. What it gives for arguments of
other sizes is found by running it on arguments of the user's example, enlarged; its code is never traced.
"""

from __future__ import annotations

import copy
import operator
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count
from math import prod
from typing import Any, TypeGuard

import numpy as np
import torch
from torch.utils import _pytree as pytree

from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.foreign import Arrays, Foreign, Kind
from ...ir.layers.random import seeded_uniform
from ...ir.trees import is_float
from ..builder import Value
from .arrays import dtype_of, to_numpy, to_torch
from .builder import TorchBuilder
from .lowerings.views import VIEWS
from .places import class_name
from .reference import without_fast_path

OPERATOR = "interlux.opaque.default"
SEED = "interlux.seed"  # the slot of the random seed, no name of a buffer of one part
_FIXED = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)
_STEPS = (1, 3)  # by which a dynamic size is enlarged to see what becomes of the results


Form = tuple[pytree.TreeSpec, tuple[bool, ...]]


class NotWrappable(UnsupportedError):
    """A call of a sub-module that cannot be one node; perhaps a call of the module around it can."""


# --- what is known of a call


@dataclass(frozen=True)
class Extent:
    """A size of a result: constant + Σ factor · size of an argument along an axis.

    Arguments:
        constant: of the sum.
        terms: (argument, axis, factor).
    """

    constant: Fraction
    terms: tuple[tuple[int, int, Fraction], ...] = ()

    def at(self, shapes: Sequence[Sequence[Any]]) -> Any:
        """The size for arguments of these shapes, ints or torch.SymInts."""
        whole = np.lcm.reduce([self.constant.denominator, *(f.denominator for _, _, f in self.terms)])
        total: Any = int(self.constant * int(whole))
        for argument, axis, factor in self.terms:
            total = total + int(factor * int(whole)) * shapes[argument][axis]
        return total if whole == 1 else total // int(whole)


@dataclass(frozen=True)
class Behaviour:
    """What a call of a sub-module does in one mode.

    Arguments:
        training: which of its modules, by name, are in training.
        results: dtype and sizes of each tensor that it returns.
        form: how they nest, and which of the leaves are tensors; the others are None.
        written: the buffers that it writes to.
        random: whether it draws random numbers.
        shares: whether a result may share memory with an argument.
    """

    training: frozenset[str]
    results: tuple[tuple[torch.dtype, tuple[Extent, ...]], ...]
    form: Form
    written: tuple[str, ...]
    random: bool
    shares: bool


@dataclass(frozen=True, eq=False, repr=False)
class TorchLayer(Foreign):
    """A module of PyTorch, run by PyTorch.

    Arguments:
        path: of the module in the one that was imported.
        module: its own copy of the module; the tensors in it are replaced in every call.
        in_spec, fixed: how the arguments nest, and those that are no tensors, None for those that are.
        behaviours: by mode (whether in training).

    Inputs: the tensors among the arguments, in order
    Returns: the tensors among the results, in order
    Parameters, States: those of the module, under its own names

    Source: torch.nn.Module.
    """

    path: str
    module: torch.nn.Module
    in_spec: pytree.TreeSpec
    fixed: tuple[Any, ...]
    behaviours: Mapping[bool, Behaviour]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __repr__(self) -> str:
        return f"TorchLayer[{class_name(self.module)}]" + (f" at {self.path!r}" if self.path else "")

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(p.shape) for name, p in self.module.named_parameters()}

    def results(
        self, params: Mapping[str, Kind], states: Mapping[str, Kind], inputs: Sequence[Kind], train: bool
    ) -> tuple[tuple[Kind, ...], tuple[str, ...]]:
        behaviour = self._behaviour(train)
        given = {k.dtype for k in (*params.values(), *inputs) if is_float(k.dtype)}
        known = [dtype_of(dtype) for dtype, _ in behaviour.results]
        floats = {dtype for dtype in known if is_float(dtype)}
        if len(given) == 1 and len(floats) == 1:  # computed in another precision as a whole
            known = [next(iter(given)) if dtype in floats else dtype for dtype in known]
        shapes = [kind.shape for kind in inputs]
        made = [
            Kind(tuple(int(e.at(shapes)) for e in sizes), dtype)
            for dtype, (_, sizes) in zip(known, behaviour.results, strict=True)
        ]
        return tuple(made), (*behaviour.written, *((SEED,) if behaviour.random and train else ()))

    def compute(
        self, params: Arrays, states: Arrays, inputs: Sequence[np.ndarray], train: bool
    ) -> tuple[tuple[np.ndarray, ...], dict[str, np.ndarray]]:
        wanted, written = self.results(_kinds(params), _kinds(states), [_kind(x) for x in inputs], train)
        with self._lock, torch.set_grad_enabled(train):
            outputs = self._run(params, states, [to_torch(x) for x in inputs], train)
            buffers = dict(self.module.named_buffers())
            new = {name: to_numpy(buffers[name]) for name in written if name != SEED}
        made = tuple(to_numpy(y) for y in outputs)
        self._check(wanted, [_kind(y) for y in made])
        if SEED in written:
            with np.errstate(over="ignore"):
                new[SEED] = seeded_uniform(states[SEED], (0,), np.arange)[1]
        return made, new

    def gradients(
        self,
        params: Arrays,
        states: Arrays,
        inputs: Sequence[np.ndarray],
        cotangents: Sequence[np.ndarray | None],
        train: bool,
    ) -> tuple[dict[str, np.ndarray], list[np.ndarray | None]]:
        tensors = [to_torch(x) for x in inputs]
        leaves = [t.requires_grad_() for t in tensors if _is_continuous(t)]
        # what the module does to its input in place, it does to this
        given = [t.clone() if t.requires_grad else t for t in tensors]
        with self._lock, torch.enable_grad():
            outputs = self._run(params, states, given, train, gradients=True)
            trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
            # JAX's gradients of complex numbers are the conjugates of PyTorch's
            pairs = [
                (y, to_torch(c).conj().resolve_conj())
                for y, c in zip(outputs, cotangents, strict=True)
                if c is not None and y.requires_grad
            ]
            wanted = [*leaves, *trained.values()]
            found: Sequence[Any] = [None] * len(wanted)
            if pairs and wanted:
                found = torch.autograd.grad([y for y, _ in pairs], wanted, [c for _, c in pairs], allow_unused=True)
            arrays = [
                to_numpy(
                    (torch.zeros_like(x) if g is None else g.to_dense() if g.layout != torch.strided else g).conj()
                )
                for x, g in zip(wanted, found, strict=True)
            ]
        of_inputs = iter(arrays[: len(leaves)])
        of_params = dict(zip(trained, arrays[len(leaves) :], strict=True))
        return (
            {name: of_params.get(name, np.zeros_like(p)) for name, p in params.items()},
            [next(of_inputs) if _is_continuous(t) else None for t in tensors],
        )

    def _behaviour(self, train: bool) -> Behaviour:
        if train not in self.behaviours:
            raise UnsupportedError(f"{self!r} is not known in {'training' if train else 'evaluation'}")
        return self.behaviours[train]

    def _run(
        self, params: Arrays, states: Arrays, tensors: Sequence[torch.Tensor], train: bool, gradients: bool = False
    ) -> list[torch.Tensor]:
        """The tensors that the module returns. Its parameters and buffers are those given."""
        behaviour = self._behaviour(train)
        for name, parameter in self.module.named_parameters():
            parameter.data = to_torch(params[name])
            if gradients and _is_continuous(parameter):
                parameter.requires_grad_()
        for owner, key, name, _ in list(_buffers(self.module)):
            setattr(owner, key, to_torch(states[name]))
        _set_training(self.module, behaviour.training)
        args, kwargs = pytree.tree_unflatten(_merged(self.fixed, tensors), self.in_spec)
        seed = int(np.asarray(states[SEED]).view(np.uint64)[0] >> np.uint64(1)) if behaviour.random else 0
        with torch.random.fork_rng(devices=[]), without_fast_path():
            torch.manual_seed(seed)
            state = torch.get_rng_state()
            outputs = self.module(*args, **kwargs)
            drew = not torch.equal(state, torch.get_rng_state())
        unknown = [
            repr(name)
            for _, _, name, buffer in _buffers(self.module)
            if name not in behaviour.written and not _same(buffer, to_torch(states[name]))
        ]
        if drew and not behaviour.random:
            unknown.append("random numbers")
        if unknown:
            raise InvalidModelError(f"{self!r} uses what it did not on the example inputs: {', '.join(unknown)}")
        leaves, spec = pytree.tree_flatten(outputs)
        if _form(leaves, spec) != behaviour.form:
            raise InvalidModelError(f"{self!r} returned other things than on the example inputs")
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def _check(self, wanted: Sequence[Kind], made: Sequence[Kind]) -> None:
        for i, (expected, kind) in enumerate(zip(wanted, made, strict=True)):
            if expected != kind:
                raise InvalidModelError(
                    f"result {i} of {self!r} is {kind.dtype.name}{list(kind.shape)}, expected was "
                    f"{expected.dtype.name}{list(expected.shape)}: it depends on the data"
                )


def _is_tensor(x: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(x, torch.Tensor)


def _form(leaves: Sequence[Any], spec: pytree.TreeSpec) -> Form:
    return spec, tuple(map(_is_tensor, leaves))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _kind(array: np.ndarray) -> Kind:
    return Kind(tuple(array.shape), array.dtype)


def _kinds(arrays: Arrays) -> dict[str, Kind]:
    return {name: _kind(array) for name, array in arrays.items()}


def _is_continuous(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _merged(fixed: Sequence[Any], tensors: Sequence[torch.Tensor]) -> list[Any]:
    """All leaves of the arguments: `_Tensor` stands for one among the fixed ones."""
    following = iter(tensors)
    return [next(following) if leaf is _TENSOR else leaf for leaf in fixed]


class _Tensor:
    def __repr__(self) -> str:
        return "tensor"


_TENSOR = _Tensor()


def _buffers(module: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, str, torch.Tensor]]:
    """(owner, its key there, name, tensor) of each buffer, once."""
    seen: set[int] = set()
    for prefix, owner in module.named_modules():
        for key, buffer in owner.named_buffers(recurse=False):
            if id(buffer) not in seen:
                seen.add(id(buffer))
                yield owner, key, f"{prefix}.{key}" if prefix else key, buffer


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same bit by bit."""
    x, y = to_numpy(a, copy=False), to_numpy(b, copy=False)
    return (x.dtype, x.shape) == (y.dtype, y.shape) and x.tobytes() == y.tobytes()


def _set_training(module: torch.nn.Module, names: frozenset[str]) -> None:
    for name, part in module.named_modules():
        if part.training != (name in names):
            part.training = name in names


# --- how a call behaves


@dataclass
class _Call:
    """One call of a wrapped sub-module in one export."""

    path: str
    in_spec: pytree.TreeSpec
    fixed: tuple[Any, ...]
    names: tuple[list[str], list[str]]  # of parameters and buffers, in the order in which the node has them
    behaviour: Behaviour


class _Probe:
    """Runs a copy of a sub-module on the arguments of the user's example, and on enlarged ones."""

    def __init__(self, path: str, module: torch.nn.Module):
        self.path, self.module = path, module
        self.calls: list[tuple[Any, Any]] = []  # (args, kwargs) as recorded

    def behaviour(self, leaves: Sequence[Any], spec: pytree.TreeSpec, number: int) -> Behaviour:
        """How call `number` behaves.

        Arguments:
            leaves, spec: its arguments as torch.export traces them: tensors have symbolic sizes.
        """
        if number >= len(self.calls):
            raise self.refusal("is called more often than with the example inputs")
        recorded, its_spec = pytree.tree_flatten(self.calls[number])
        shapes = [tuple(x.shape) for x in leaves if _is_tensor(x)]
        real = [x for x in recorded if _is_tensor(x)]
        if its_spec != spec or len(real) != len(shapes):
            raise self.refusal("is called with other arguments than with the example inputs")
        places = _symbols(shapes, real)
        if places is None:
            raise self.refusal("takes sizes that are no linear functions of one dynamic size")
        base = {name: size for name, (_, size) in places.items()}
        fixed = [_TENSOR if _is_tensor(x) else x for x in recorded]

        def run(sizes: Mapping[str, int], change: Callable[[torch.Tensor], torch.Tensor] | None = None) -> _Run:
            tensors = [_resized(x, shape, sizes) for x, shape in zip(real, shapes, strict=True)]
            if change is not None:
                tensors = [change(x) for x in tensors]
            return self._run(_merged(fixed, tensors), spec)

        runs = [run(base), run(base, _flipped), run(base, _negated)]
        if not all(map(_same, runs[0].outputs, run(base).outputs)):
            raise self.refusal("gives other results when it is called again with the same arguments")
        moved = {name: [run({**base, name: base[name] + step}) for step in _STEPS] for name in places}
        together = run({name: size + 2 for name, size in base.items()})
        every = [*runs, *(r for pair in moved.values() for r in pair), together]
        if any(r.form != runs[0].form for r in every):
            raise self.refusal("returns other things for other inputs")
        if any(r.shapes != runs[0].shapes for r in runs):
            raise self.refusal("returns tensors whose sizes depend on the data")
        extents = [
            tuple(
                self._extent(
                    size,
                    {name: [r.shapes[i][axis] for r in pair] for name, pair in moved.items()},
                    together.shapes[i][axis],
                    {name: place for name, (place, _) in places.items()},
                )
                for axis, size in enumerate(shape)
            )
            for i, shape in enumerate(runs[0].shapes)
        ]
        return Behaviour(
            frozenset(name for name, part in self.module.named_modules() if part.training),
            tuple(zip(runs[0].dtypes, extents, strict=True)),
            runs[0].form,
            tuple(dict.fromkeys(name for r in every for name in r.written)),
            any(r.random for r in every),
            any(r.shares for r in every),
        )

    def _extent(
        self,
        size: int,
        moved: Mapping[str, list[int]],
        together: int,
        places: Mapping[str, tuple[int, int, int, int]],
    ) -> Extent:
        """A size of a result as a function of the arguments' sizes, from what it was when each was enlarged."""
        constant, terms, expected = Fraction(size), [], size
        for name, sizes in moved.items():
            slope = sizes[0] - size
            if sizes[1] - size != _STEPS[1] * slope:
                raise self.refusal("returns tensors whose sizes are no linear functions of the dynamic sizes")
            expected += 2 * slope
            if slope:
                argument, axis, factor, present = places[name]
                constant -= Fraction(slope, factor) * present
                terms.append((argument, axis, Fraction(slope, factor)))
        if together != expected:
            raise self.refusal("returns tensors whose sizes are no linear functions of the dynamic sizes")
        return Extent(constant, tuple(terms))

    def _run(self, leaves: list[Any], spec: pytree.TreeSpec) -> _Run:
        args, kwargs = pytree.tree_unflatten(leaves, spec)
        given = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        versions = [x._version for x in given]
        kept = [(owner, key, name, b.detach().clone()) for owner, key, name, b in _buffers(self.module)]
        with torch.random.fork_rng(devices=[]), without_fast_path(), torch.set_grad_enabled(self.module.training):
            torch.manual_seed(0)
            state = torch.get_rng_state()
            try:
                outputs = self.module(*args, **kwargs)
            except Exception as error:  # whatever the module's code raises
                raise self.refusal(f"cannot be run on the example inputs: {_said(error)}") from error
            random = not torch.equal(state, torch.get_rng_state())
        now = {name: b for _, _, name, b in _buffers(self.module)}
        written = tuple(name for _, _, name, before in kept if name not in now or not _same(now[name], before))
        for owner, key, _, value in kept:
            setattr(owner, key, value)
        if [x._version for x in given] != versions:
            raise self.refusal("writes to its arguments")
        made, its_spec = pytree.tree_flatten(outputs)
        if any(x.is_complex() for x in made if _is_tensor(x)):
            raise self.refusal("returns complex tensors")
        strange = [x for x in made if not isinstance(x, torch.Tensor | None)]
        if strange:
            raise self.refusal(f"returns a {type(strange[0]).__name__}, not only tensors")
        tensors = [x for x in made if _is_tensor(x)]
        if not tensors:
            raise self.refusal("returns no tensor")
        stored = {x.untyped_storage().data_ptr() for x in (*given, *self.module.parameters(), *self.module.buffers())}
        return _Run(
            [x.detach().clone() for x in tensors],
            [tuple(x.shape) for x in tensors],
            [x.dtype for x in tensors],
            _form(made, its_spec),
            written,
            random,
            any(x.untyped_storage().data_ptr() in stored for x in tensors if x.numel()),
        )

    def refusal(self, what: str) -> NotWrappable:
        name = class_name(self.module)
        return NotWrappable(f"{self.path or 'the module'} ({name}) cannot be kept in PyTorch: it {what}")


@dataclass
class _Run:
    outputs: list[torch.Tensor]
    shapes: list[tuple[int, ...]]
    dtypes: list[torch.dtype]
    form: Form
    written: tuple[str, ...]
    random: bool
    shares: bool


def _symbols(
    shapes: Sequence[Sequence[Any]], real: Sequence[torch.Tensor]
) -> dict[str, tuple[tuple[int, int, int, int], int]] | None:
    """The symbols in sizes: name -> ((argument, axis, factor, size), value) of a size that is factor · symbol + …

    None if some symbol occurs in no such size.
    """
    found: dict[str, tuple[tuple[int, int, int, int], int]] = {}
    needed: set[str] = set()
    for argument, (shape, tensor) in enumerate(zip(shapes, real, strict=True)):
        for axis, size in enumerate(shape):
            if isinstance(size, int) or size.node.expr.is_Integer:
                continue
            expr = size.node.expr
            needed |= {str(s) for s in expr.free_symbols}
            if len(expr.free_symbols) != 1:
                continue
            (symbol,) = expr.free_symbols
            if not expr.is_polynomial(symbol):
                continue
            factor, rest = expr.diff(symbol), expr.subs(symbol, 0)
            if factor.is_Integer and rest.is_Integer and factor > 0:
                present = int(tensor.shape[axis])
                value = (present - int(rest)) // int(factor)
                found.setdefault(str(symbol), ((argument, axis, int(factor), present), value))
    return found if needed == found.keys() else None


def _resized(x: torch.Tensor, shape: Sequence[Any], sizes: Mapping[str, int]) -> torch.Tensor:
    """x with its dynamic axes as long as `sizes` says: its own rows again and again."""
    x = x.detach().clone()
    for axis, size in enumerate(shape):
        if not isinstance(size, int) and not size.node.expr.is_Integer:
            expr = size.node.expr
            length = int(expr.subs({s: sizes[str(s)] for s in expr.free_symbols}))
            if length != x.shape[axis]:
                x = x.index_select(axis, torch.arange(length) % max(x.shape[axis], 1))
    return x


def _flipped(x: torch.Tensor) -> torch.Tensor:
    return x.flip(list(range(x.dim())))


def _negated(x: torch.Tensor) -> torch.Tensor:
    return -x if _is_continuous(x) else x


# --- while a module is exported


class Parts:
    """The sub-modules of a module that stay in PyTorch, in one mode.

    Arguments:
        module: the whole.
        paths: of the sub-modules, each with the reason.
    """

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.paths: dict[str, str] = {}
        self.calls: list[_Call] = []

    def add(self, candidates: Sequence[str], reason: str) -> bool:
        """Adds the first of the paths that is not there yet. Returns whether there was one."""
        for path in candidates:
            inside = any(path == p or path.startswith(f"{p}.") or not p for p in self.paths)
            if not inside and _find(self.module, path) is not None:
                inner = [p for p in self.paths if p.startswith(f"{path}.") or not path]
                reason = next((self.paths[p] for p in inner), reason)
                for p in inner:
                    del self.paths[p]
                self.paths[path] = reason
                return True
        return False

    def add_existing(self, path: str, reason: str) -> bool:
        """Adds a path, or the nearest one around it that a module has. Returns whether it was not there yet."""
        while path and _find(self.module, path) is None:
            path = path.rpartition(".")[0]
        return self.add([path], reason)

    @contextmanager
    def tried(self, path: str) -> Iterator[None]:
        """Inside, a path is among them, and what it contains is not."""
        before = dict(self.paths)
        self.add([path], "")
        try:
            yield
        finally:
            self.paths = before

    def narrowed(self, works: Callable[[str], bool]) -> str:
        """The innermost module that it is enough to add; the root if none is.

        Arguments:
            works: whether the export succeeds with a path added.
        """
        path = ""
        while True:
            part = _find(self.module, path)
            inner = [f"{path}.{name}" if path else name for name, _ in part.named_children()] if part else []
            found = next((p for p in inner if p not in self.paths and works(p)), None)
            if found is None:
                return path
            path = found

    @contextmanager
    def kept(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Inside, calls of the sub-modules are nodes. The module is in the mode that is exported.

        Arguments:
            args, kwargs: the example inputs, for which the sub-modules' own arguments are recorded.
        """
        self.calls = []
        if not self.paths:
            yield
            return
        probes = self._recorded(args, kwargs)
        numbers = {path: count() for path in self.paths}

        def called(path: str, args: Any, kwargs: Any) -> Any:
            return self._node(probes[path], next(numbers[path]), args, kwargs)

        with _replaced({path: _find(self.module, path) for path in self.paths}, called):
            yield

    def _recorded(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, _Probe]:
        twin = copy.deepcopy(self.module)
        probes = {path: _Probe(path, copy.deepcopy(_find(twin, path))) for path in self.paths}  # type: ignore[arg-type]
        parts = {path: _find(twin, path) for path in self.paths}

        def called(path: str, args: Any, kwargs: Any) -> Any:
            probes[path].calls.append(pytree.tree_map_only(torch.Tensor, lambda x: x.detach().clone(), (args, kwargs)))
            part = parts[path]
            assert part is not None
            with _replaced({path: part}, None):
                return part(*args, **kwargs)

        given = pytree.tree_map_only(torch.Tensor, lambda x: x.detach().clone(), (args, dict(kwargs)))
        with (
            torch.random.fork_rng(devices=[]),
            without_fast_path(),
            _replaced(parts, called),
            torch.set_grad_enabled(twin.training),
        ):
            try:
                twin(*given[0], **given[1])
            except Exception as error:  # whatever the module's code raises
                raise UnsupportedError(
                    f"{type(self.module).__name__} cannot be run on the example inputs: {_said(error)}"
                ) from error
        return probes

    def _node(self, probe: _Probe, number: int, args: Any, kwargs: Any) -> Any:
        module = _find(self.module, probe.path)
        assert module is not None
        leaves, spec = pytree.tree_flatten((args, kwargs))
        strange = [x for x in leaves if not isinstance(x, (torch.Tensor, *_FIXED))]
        if strange:
            raise probe.refusal(f"takes an argument of type {type(strange[0]).__name__}")
        if any(
            x.is_complex() for x in (*pytree.tree_leaves((args, kwargs)), *probe.module.parameters()) if _is_tensor(x)
        ):
            raise probe.refusal("computes with complex tensors")
        with ThreadPoolExecutor(1) as other:  # where no mode of torch.export's is active
            behaviour = other.submit(probe.behaviour, leaves, spec, number).result()
        tensors = [x for x in leaves if _is_tensor(x)]
        fixed = tuple(_TENSOR if _is_tensor(x) else x for x in leaves)
        names = (
            [name for name, _ in probe.module.named_parameters()],
            [name for _, _, name, _ in _buffers(probe.module)],
        )
        stored = {**dict(module.named_parameters()), **dict(module.named_buffers())}  # torch.export's stand-ins
        params, buffers = ([stored[name] for name in each] for each in names)
        self.calls.append(_Call(probe.path, spec, fixed, names, behaviour))
        what = f"{probe.path} {fixed!r} {spec} -> {behaviour.results!r}"
        _TRACED[(key := len(self.calls) - 1)] = behaviour
        try:
            outputs = iter(torch.ops.interlux.opaque(tensors, params, buffers, key, what))
        finally:
            del _TRACED[key]
        its_spec, present = behaviour.form
        return pytree.tree_unflatten([next(outputs) if there else None for there in present], its_spec)

    def check(self, program: torch.export.ExportedProgram) -> None:
        """Raises UnsupportedError if torch.export has left out a call, or if memory that a sub-module shares is
        written to."""
        graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
        nodes = [n for graph in graphs for n in graph.nodes if str(n.target) == OPERATOR]
        if len(nodes) != len(self.calls):
            raise UnsupportedError(
                f"torch.export kept {len(nodes)} of {len(self.calls)} calls of {', '.join(self.paths)}; "
                "their results must be used"
            )
        for node in nodes:
            if self.calls[node.args[3]].behaviour.shares:
                _refuse_writes(node, self.calls[node.args[3]].path)


_TRACED: dict[int, Behaviour] = {}  # of calls that are being traced


@torch.library.custom_op("interlux::opaque", mutates_args=())
def _opaque(
    inputs: Sequence[torch.Tensor],
    params: Sequence[torch.Tensor],
    buffers: Sequence[torch.Tensor],
    key: int,
    what: str,
) -> list[torch.Tensor]:
    raise UnsupportedError(f"an exported program with a part that stays in PyTorch ({what}) runs nowhere else")


@_opaque.register_fake
def _(
    inputs: Sequence[torch.Tensor],
    params: Sequence[torch.Tensor],
    buffers: Sequence[torch.Tensor],
    key: int,
    what: str,
) -> list[torch.Tensor]:
    shapes = [x.shape for x in inputs]
    return [torch.empty([extent.at(shapes) for extent in sizes], dtype=dtype) for dtype, sizes in _TRACED[key].results]


def _find(module: torch.nn.Module, path: str) -> torch.nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


_ABSENT = object()


@contextmanager
def _replaced(
    parts: Mapping[str, torch.nn.Module | None], called: Callable[[str, Any, Any], Any] | None
) -> Iterator[None]:
    """Inside, `called(path, args, kwargs)` stands for calling a part, its hooks included; None: its own code does."""
    before = {}
    for path, part in parts.items():
        before[path] = vars(part).get("_compiled_call_impl", _ABSENT)
        vars(part)["_compiled_call_impl"] = None if called is None else _calling(called, path)
    try:
        yield
    finally:
        for path, part in parts.items():
            if before[path] is _ABSENT:
                del vars(part)["_compiled_call_impl"]
            else:
                vars(part)["_compiled_call_impl"] = before[path]


def _calling(called: Callable[[str, Any, Any], Any], path: str) -> Callable[..., Any]:
    return lambda *args, **kwargs: called(path, args, kwargs)


def _refuse_writes(node: torch.fx.Node, path: str) -> None:
    """Raises UnsupportedError if a result that may share memory with an argument, or that argument, is written to
    while the other is still used."""
    order = {n: i for i, n in enumerate(node.graph.nodes)}

    def root(n: torch.fx.Node) -> torch.fx.Node:
        while n is not node and n.op == "call_function" and n.args and isinstance(n.args[0], torch.fx.Node):
            if not (n.target is operator.getitem or name(n) in VIEWS or writes(n)):
                break
            n = n.args[0]
        return n

    def name(n: torch.fx.Node) -> str:
        return str(n.target).removeprefix("aten.")

    def writes(n: torch.fx.Node) -> bool:
        word = name(n).partition(".")[0]
        return n.op == "call_function" and word.endswith("_") and not word.startswith("__")

    arguments = {root(a) for a in node.all_input_nodes}
    for write in node.graph.nodes:
        if order[write] <= order[node] or not writes(write) or root(write) not in (node, *arguments):
            continue
        other = arguments if root(write) is node else {node}
        if any(root(a) in other for n in node.graph.nodes if order[n] > order[write] for a in n.all_input_nodes):
            raise UnsupportedError(
                f"{path} stays in PyTorch and may return its argument itself, which {write.target} then writes to; "
                "return a copy (.clone())"
            )


# --- into the graph


class Wrapped:
    """Makes the layers of wrapped calls when a program is imported.

    Arguments:
        parts: of the modes that the program serves, by mode (whether in training).
    """

    def __init__(self, parts: Mapping[bool, Parts]):
        self.parts = parts

    def __call__(
        self,
        op: TorchBuilder,
        inputs: Sequence[Value],
        params: Sequence[Value],
        buffers: Sequence[Value],
        key: int,
        what: str,
    ) -> tuple[Value, ...]:
        """Records the layer of one call. Returns its results."""
        calls = {train: parts.calls[key] for train, parts in self.parts.items()}
        call = next(iter(calls.values()))
        parts = next(iter(self.parts.values()))
        module = _copy(_find(parts.module, call.path))
        behaviours = {train: c.behaviour for train, c in calls.items()}
        layer = TorchLayer(call.path, module, call.in_spec, call.fixed, behaviours)
        states = dict(zip(call.names[1], buffers, strict=True))
        if any(b.random for b in behaviours.values()):
            states[SEED] = op.seed
        results = op.result
        made = op.add(
            layer, *inputs, params=dict(zip(call.names[0], params, strict=True)), states=states, outputs=len(results)
        )
        made = made if isinstance(made, tuple) else (made,)
        for i, (value, fake) in enumerate(zip(made, results, strict=True)):
            value.dtype = dtype_of(fake.dtype)
            op.named(value, f"{op.fx_node.name}.{i}", op.shape(fake.shape))
        return made


def _copy(module: Any) -> torch.nn.Module:
    """A copy whose parameters and buffers hold no memory: they are given in every call."""
    if isinstance(module, torch.jit.ScriptModule):
        return copy.deepcopy(module)
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = torch.nn.Parameter(_empty(parameter), parameter.requires_grad)
    for buffer in module.buffers():
        memo[id(buffer)] = _empty(buffer)
    return copy.deepcopy(module, memo)


def _empty(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, all of whose elements are one."""
    if not prod(tensor.shape):
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    return torch.empty((1,), dtype=tensor.dtype).as_strided(tensor.shape, (0,) * tensor.dim())
