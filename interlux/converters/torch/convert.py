"""`from_torch`: a module, an exported program or a .pt2 file into a model."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...ir import trees
from ...ir.errors import InvalidModelError, UnsupportedError
from ...ir.graph import ByMode, Graph, Unavailable, graph_of
from ...ir.layer import ALWAYS, Layer
from ...ir.layers.random import fresh_seed
from ...ir.model import Dimension, Model, Signature, TensorSpec
from ...ir.trees import Path
from .arrays import real_view, to_numpy
from .builder import Modes, OwnStates
from .export import Args, ExportError, as_call, dimension_names, export, in_mode
from .guards import conditions, conditions_of_code
from .hooks import hooked_modules, hooked_parameters
from .importer import UNIMPORTABLE, ProgramImporter, Unimportable
from .modes import PairedModes, SingleMode, single
from .places import Spot, class_name
from .settling import settled
from .state_files import is_weight_file, module_from_file
from .structure import leaf_names, structure

if TYPE_CHECKING:
    from .opaque import Parts

Program = torch.export.ExportedProgram
TRAINING, EVALUATION = "training", "evaluation"
Names = Mapping[tuple[int, int], str] | None  # of dynamic dimensions, by number of the input and axis


def from_torch(
    source: torch.nn.Module | Program | str | os.PathLike[str],
    example_inputs: Any = None,
    dynamic_shapes: Any = "batch",
    *,
    name: str | None = None,
    seed: int = 0,
    opaque: str = "refuse",
    arch: str | Callable[[], Any] | None = None,
    trust: bool = False,
) -> Model:
    """Imports a PyTorch network with its weights.

    Arguments:
        source: a module (left as it is), a torch.export.ExportedProgram, the path of a .pt2 file, or that of a file of
            weights (.safetensors; .pt, .pth or .bin of torch.save). A file is read without running anything in it.
        example_inputs: for a module: a tensor, a tuple of arguments, a dict of keyword arguments, or a pair of both.
        dynamic_shapes: for a module: "batch" (axis 0 of every input that has the size of the first), "auto", None for
            fixed sizes, or what torch.export.export takes.
        name: of the model; the class of the module by default.
        seed: of the random numbers in training (dropout).
        opaque: what becomes of sub-modules that torch.export or the import cannot follow (control flow that depends on
            the data, custom operators, TorchScript): "refuse" them, or "wrap" the smallest ones that can be: they stay
            in PyTorch as layers that JAX calls back, with gradients; ONNX files and saved models cannot hold them.
        arch: for a file of weights: what makes the network, as a function or as "package.module:function".
        trust: whether a file may hold a whole pickled module. Loading one runs code that is in the file.

    Returns:
        A model whose parameters and states have the names of the `state_dict`. `train=True` works without another
        import: a module is exported in both modes.

    Raises UnsupportedError with every operator that cannot be imported and its place, or with torch.export's reason.
    """
    if opaque not in ("refuse", "wrap"):
        raise InvalidModelError(f'opaque is "refuse" or "wrap", not {opaque!r}')
    notes: tuple[str, ...] = ()
    if isinstance(source, str | os.PathLike) and is_weight_file(source):
        source, own_inputs, notes = module_from_file(source, arch, trust)
        example_inputs = own_inputs if example_inputs is None else example_inputs
    elif arch is not None or trust:
        raise InvalidModelError("arch and trust are for files of weights (.safetensors, .pt, .pth, .bin)")
    if isinstance(source, torch.nn.Module):
        if isinstance(source, torch.jit.ScriptModule):
            raise UnsupportedError("a TorchScript module cannot be exported; give the nn.Module that it was made of")
        if example_inputs is None:
            raise InvalidModelError("from_torch needs example_inputs for a module, e.g. (torch.randn(2, 3, 224, 224),)")
        _check_values(source)
        model = _from_module(source, *as_call(example_inputs), dynamic_shapes, name, seed, opaque == "wrap")
        return replace(model, notes=(*notes, *model.notes))
    if opaque == "wrap":
        raise InvalidModelError("opaque='wrap' needs the module itself: a program has no code of sub-modules")
    if isinstance(source, Program):
        program, label, guards = source, name or "ExportedProgram", list(getattr(source, "_guards_code", ()))
    elif isinstance(source, str | os.PathLike):
        from .pt2 import load_with_guards

        program, guards = load_with_guards(source)
        label = name or os.path.splitext(os.path.basename(source))[0]
    else:
        raise InvalidModelError(
            f"from_torch takes an nn.Module, an ExportedProgram or a path, not {type(source).__name__}"
        )
    stored = _Stored(program.state_dict, {EVALUATION: program})
    modes = single(program.graph)
    not_one: dict[str, str] = {}
    layer = _graph(program, EVALUATION, modes, stored, not_one, fresh=False)
    if modes.follows is None:
        notes = (
            "layers of both modes were exported: each stays as it was, train=True changes nothing; import the module "
            "itself for both modes",
        )
    elif not modes.follows:
        notes = (
            "exported in evaluation: batch normalisation and dropout follow train=True again, but what the module's "
            "own code does differently in training is not in the file",
        )
    model = _model(layer, program, stored, label, seed, notes, not_one)
    assert model.signature is not None
    if guards and not model.signature.conditions:  # a program that was saved has them as code only
        found = conditions_of_code(guards, program, dim_names(program, None))
        model = replace(model, signature=replace(model.signature, conditions=found))
    return model


def _check_values(module: torch.nn.Module) -> None:
    """Raises UnsupportedError for parameters and buffers that have no values yet."""
    tensors = dict(itertools.chain(module.named_parameters(), module.named_buffers()))
    lazy = [name for name, tensor in tensors.items() if torch.nn.parameter.is_lazy(tensor)]
    if lazy:
        raise UnsupportedError("lazy modules have no parameters yet; call the module once on example inputs", lazy)
    meta = [name for name, tensor in tensors.items() if tensor.is_meta]
    if meta:
        raise UnsupportedError(
            "these tensors are on the meta device and have no values; give them some before "
            "(module.load_state_dict(…, assign=True))",
            meta,
        )


def _random_note(layer: Layer) -> tuple[str, ...]:
    """One sentence if a model draws random numbers in evaluation."""
    graph = layer.evaluation if isinstance(layer, ByMode) else layer
    drawing = [
        node.name
        for node in (graph.nodes if isinstance(graph, Graph) else ())
        if any(slot == "seed" for slot, _ in node.states) and getattr(node.layer, "mode", ALWAYS) == ALWAYS
    ]
    if not drawing:
        return ()
    return (
        f"random numbers are drawn in evaluation too ({', '.join(drawing)}): they are not PyTorch's, a comparison of "
        "outputs fails, and only layer.apply can run the model",
    )


class _Again(Exception):
    """More of a module must stay in PyTorch: it is to be exported again."""


def _from_module(
    module: torch.nn.Module,
    args: Args,
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    name: str | None,
    seed: int,
    wrap: bool,
) -> Model:
    parts: dict[str, Parts] = {}
    if wrap:
        from .opaque import Parts

        parts = {label: Parts(module) for label in (EVALUATION, TRAINING)}
    notes: tuple[str, ...] = ()
    while True:
        try:
            model = _imported(module, args, kwargs, dynamic_shapes, name, seed, parts)
            return replace(model, notes=(*notes, *model.notes))
        except _Again:
            continue
        except UnsupportedError:
            after = None if wrap or notes else settled(module, args, kwargs)
            if after is None:
                raise
            module, changed = after
            notes = (f"the module changes itself when it is called ({', '.join(changed)}): as after its first call",)


def _imported(
    module: torch.nn.Module,
    args: Args,
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    name: str | None,
    seed: int,
    parts: Mapping[str, Parts],
) -> Model:
    """The model of a module. Raises _Again if one of the `parts` has grown."""
    evaluation, backwards, not_one = _exported(module, args, kwargs, dynamic_shapes, False, parts.get(EVALUATION))
    notes = tuple(
        f"{what} ({spot}); in evaluation, gradients are those of the forward alone" for what, spot in backwards.items()
    )
    training: Program | None
    reason = ""
    try:
        training, _, _ = _exported(module, args, kwargs, dynamic_shapes, True, parts.get(TRAINING))
    except UnsupportedError as error:  # evaluation is what most conversions are for
        training = None
        reason = f"evaluation only, the training mode cannot be exported: {error}"
        notes += (reason,)
    if any(isinstance(m, torch.nn.TransformerEncoder) and m.enable_nested_tensor for m in module.modules()):
        notes += (
            "torch's fast path of nn.TransformerEncoder gives zeros at padded positions; the exported program, and so "
            "this model, computes them",
        )
    state = dict(module.state_dict(keep_vars=True))
    programs = {EVALUATION: evaluation} | ({} if training is None else {TRAINING: training})
    stored = _Stored(state, programs)
    label = name or type(module).__name__
    names = dimension_names(dynamic_shapes, module, args, kwargs)

    def graph(program: Program, modes: Modes, *serves: str) -> Graph:
        kept = {mode: parts[mode] for mode in serves if mode in parts}
        try:
            return _graph(program, serves[0], modes, stored, not_one, names, fresh=True, kept=kept)
        except Unimportable as error:
            if not kept:
                raise UnsupportedError(f"{UNIMPORTABLE} (opaque='wrap' keeps their modules)", error.items) from error
            grown = [p.add_existing(path, error.reason(path)) for p in kept.values() for path in error.modules]
            if any(grown):
                raise _Again from error
            raise

    layer: Layer
    if training is None:
        layer = ByMode(Unavailable(reason), graph(evaluation, SingleMode(None), EVALUATION))
    elif (paired := PairedModes.of(training.graph, evaluation.graph)) is not None:
        layer = graph(training, paired, TRAINING, EVALUATION)
    else:
        alone = SingleMode(None)
        evaluated = graph(evaluation, alone, EVALUATION)
        notes += ("the module's code differs between training and evaluation: both graphs are kept",)
        try:
            layer = ByMode(graph(training, alone, TRAINING), evaluated)
        except UnsupportedError as error:
            notes = (*notes[:-1], f"evaluation only, the training mode cannot be imported: {error}")
            layer = ByMode(Unavailable(notes[-1]), evaluated)
    notes += _kept_notes(module, parts)
    return _model(layer, evaluation, stored, label, seed, notes, not_one, names)


def _exported(
    module: torch.nn.Module,
    args: Args,
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    train: bool,
    parts: Parts | None,
) -> tuple[Program, dict[str, Spot], dict[str, str]]:
    """The program of one mode, the places of functions whose own backward it has not, and those that decide by whether
    a size (a symbol) is 1. What torch.export cannot follow is added to `parts`, if they are given."""
    while True:
        backwards: dict[str, Spot] = {}
        not_one: dict[str, str] = {}
        try:
            with in_mode(module, train=train):
                keeping = None if parts is None else parts.kept
                program = export(module, args, kwargs, dynamic_shapes, keeping, backwards, not_one)
            backwards |= hooked_modules(module, () if parts is None else parts.paths)
            if train and (hooked := hooked_parameters(module)):
                raise UnsupportedError(
                    "hooks change the gradients of parameters; change them where they are used", hooked
                )
            if train:  # in training, what the gradients are matters
                for what, spot in backwards.items():
                    raise ExportError(type(module).__name__, what, spot)
            if parts is not None:
                parts.check(program)
            return program, backwards, not_one
        except ExportError as error:
            if parts is None:
                raise
            candidates = [path for path, _ in error.spot.modules]
            if not candidates:  # torch.export says it at the end, of the whole

                def works(path: str) -> bool:
                    try:
                        with in_mode(module, train=train), parts.tried(path):
                            export(module, args, kwargs, dynamic_shapes, parts.kept)
                    except UnsupportedError:
                        return False
                    return True

                candidates = [parts.narrowed(works)]
            if not parts.add(candidates, error.reason):
                raise


def _kept_notes(module: torch.nn.Module, parts: Mapping[str, Parts]) -> tuple[str, ...]:
    """One sentence for each sub-module that stays in PyTorch."""
    reasons: dict[str, str] = {}
    for each in parts.values():
        for path, reason in each.paths.items():
            reasons.setdefault(path, reason)
    return tuple(
        f"{path or 'the whole module'} ({class_name(module.get_submodule(path))}) stays in PyTorch"
        + ("" if all(path in each.paths for each in parts.values()) else " in one of both modes")
        + f": {reason}"
        for path, reason in reasons.items()
    )


def _identity(tensor: torch.Tensor) -> Any:
    return (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else id(tensor)


class _Stored:
    """The named tensors of a program: where each is stored, and which names are tied."""

    def __init__(self, state: Mapping[str, Any], programs: Mapping[str, Program]):
        tensors: dict[str, torch.Tensor] = {}
        for key, value in state.items():
            if not isinstance(value, torch.Tensor):
                raise UnsupportedError(f"state_dict entry {key!r} is no tensor but {type(value).__name__}")
            tensors[key] = value
        self.state_dict = list(tensors)
        names: dict[str, dict[str, str]] = {}  # of a program's tensors, where they are not those of the module
        for label, program in programs.items():
            names[label] = {}
            for key, value in {**program.constants, **program.state_dict}.items():
                if not isinstance(value, torch.Tensor):
                    continue
                wishes = itertools.chain((key,), (f"{key}_{i}" for i in itertools.count()))
                name = next(w for w in wishes if w not in tensors or _identity(tensors[w]) == _identity(value))
                tensors.setdefault(name, value)
                names[label][key] = name
        missing = [key for key, tensor in tensors.items() if tensor.is_meta]
        if missing:
            raise UnsupportedError("these tensors are on the meta device and have no values", missing)
        self.tensors = tensors
        same: dict[Any, list[str]] = {}
        for key, tensor in tensors.items():
            same.setdefault(_identity(tensor) if tensor.numel() else key, []).append(key)
        # of names for one tensor the first that is trained stands for all
        first = {
            k: next((n for n in group if tensors[n].requires_grad), group[0]) for group in same.values() for k in group
        }
        self.canonical = {key: trees.path_of(first[key]) for key in tensors}
        self.names = {label: {k: self.canonical[n] for k, n in found.items()} for label, found in names.items()}
        self.aliases = {trees.path_of(key): self.canonical[key] for key in self.state_dict if first[key] != key}
        self._check_overlap({k: tensors[k] for k in first.values()})
        taken = {path[0] for path in self.canonical.values()}
        wishes = itertools.chain(("interlux",), (f"interlux_{i}" for i in itertools.count()))
        self.own = OwnStates(next(wish for wish in wishes if wish not in taken))

    @staticmethod
    def _check_overlap(tensors: Mapping[str, torch.Tensor]) -> None:
        """Refuses tensors that share part of their memory: training them apart would be wrong."""

        def extent(t: torch.Tensor) -> tuple[int, int]:
            reach = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
            return t.data_ptr(), t.data_ptr() + (reach + 1) * t.element_size()

        spans = sorted((*extent(t), key) for key, t in tensors.items() if t.numel())
        for (_, end, first), (start, _, second) in itertools.pairwise(spans):
            if start < end:
                raise UnsupportedError(
                    f"{first!r} and {second!r} share part of their memory; make them separate tensors"
                )

    def trees(self) -> tuple[trees.Tree, trees.Tree]:
        """Parameters and states as numpy: what requires a gradient is a parameter."""
        params: list[tuple[Path, np.ndarray]] = []
        states: list[tuple[Path, np.ndarray]] = []
        for key, tensor in self.tensors.items():
            path = self.canonical[key]
            if path == trees.path_of(key):
                (params if tensor.requires_grad else states).append((path, to_numpy(real_view(tensor))))
        states += self.own.constants.items()
        return trees.from_leaves(params), trees.from_leaves(states)


def _graph(
    program: Program,
    label: str,
    modes: Modes,
    stored: _Stored,
    not_one: dict[str, str],
    names: Names = None,
    *,
    fresh: bool,
    kept: Mapping[str, Parts] | None = None,
) -> Graph:
    """The graph of a program. `kept` has the parts that stay in PyTorch, by the modes that the program serves;
    `not_one` gets the symbols of sizes that must not be 1, with the place."""
    importer = ProgramImporter(program, modes, stored.names[label], dim_names(program, names), fresh, stored.own)
    if kept:
        from .opaque import Wrapped

        importer.opaque = Wrapped({mode == TRAINING: parts for mode, parts in kept.items()})
    graph = importer.run()
    not_one.update(importer.op.not_one)
    trained = [trees.name_of(p) for p in importer.written if stored.tensors[trees.name_of(p)].requires_grad]
    if trained:
        raise UnsupportedError(
            "the module's forward writes to its parameters (if only the first one does, call it once before)", trained
        )
    return graph


def _user_inputs(program: Program) -> list[torch.fx.Node]:
    names = set(program.graph_signature.user_inputs)
    return [n for n in program.graph.find_nodes(op="placeholder") if n.name in names]


def dim_names(program: Program, given: Names = None) -> dict[str, str]:
    """Names for torch's symbols: those `given` for an input's axis, `batch` for axis 0 of the first input, else input
    and axis."""
    names: dict[str, str] = {}
    tensors = [n for n in _user_inputs(program) if isinstance(n.meta.get("val"), torch.Tensor)]
    for i, node in enumerate(tensors):
        for axis, size in enumerate(node.meta["val"].shape):
            symbols: Any = size.node.expr.free_symbols if isinstance(size, torch.SymInt) else ()
            for symbol in symbols:
                wish = "batch" if axis == 0 and not names else f"{node.name}_{axis}"
                names.setdefault(str(symbol), (given or {}).get((i, axis), wish))
    return names


def _model(
    layer: Layer,
    program: Program,
    stored: _Stored,
    name: str,
    seed: int,
    notes: tuple[str, ...],
    not_one: Mapping[str, str],
    names: Names = None,
) -> Model:
    graph = graph_of(layer)
    assert graph is not None
    params, states = stored.trees()
    graphs = [layer.training, layer.evaluation] if isinstance(layer, ByMode) else [layer]
    branch, key = stored.own.seed
    if any((branch, key) in g.paths() for g in graphs if isinstance(g, Graph)):
        states = {**states, branch: {**states.get(branch, {}), key: fresh_seed(np.random.default_rng(seed))}}
    metadata = {"source": "torch", "name": name, "state_dict": stored.state_dict}
    if found := [key for key in stored.state_dict if stored.tensors[key].is_complex()]:
        metadata["complex"] = found  # stored as pairs of real and imaginary parts
    labels = dim_names(program, names)
    signature = replace(_signature(graph, program, labels), conditions=conditions(program, labels, not_one))
    notes += _random_note(layer)
    return Model(layer, params, states, signature, stored.aliases, metadata, notes)


def _signature(graph: Graph, program: Program, names: dict[str, str]) -> Signature:
    inputs: list[TensorSpec] = []
    dims: dict[str, Dimension] = {}
    leaves: list[Any] = []
    examples = list(_user_inputs(program))
    for spec in program.graph_signature.input_specs:
        if spec.kind.name != "USER_INPUT":
            continue
        node = next((n for n in examples if n.name == getattr(spec.arg, "name", None)), None)
        if node is None or not isinstance(node.meta.get("val"), torch.Tensor):
            leaves.append({"value": getattr(spec.arg, "value", None)})
            continue
        leaves.append(len(inputs))
        info = graph.values[graph.inputs[len(inputs)]]
        inputs.append(TensorSpec(graph.inputs[len(inputs)], info.dtype, info.shape))
        for size in node.meta["val"].shape:
            if isinstance(size, torch.SymInt) and not size.node.expr.is_Integer:
                label, dimension = _dimension(size, program, names)
                dims[label] = dimension
    in_structure = _in_structure(program, leaves)
    out_leaves: list[Any] = []
    index = 0
    for out in program.graph_signature.output_specs:
        if out.kind.name != "USER_OUTPUT":
            continue
        if hasattr(out.arg, "value"):
            out_leaves.append({"value": out.arg.value})
        else:
            out_leaves.append(index)
            index += 1
    form = structure(program.call_spec.out_spec, list(out_leaves))
    labels: dict[int, str] = {}
    for i, wish in leaf_names(form).items():
        taken = {*graph.inputs, *labels.values()}
        labels[i] = next(
            w for w in itertools.chain((wish,), (f"{wish}_{k}" for k in itertools.count(1))) if w not in taken
        )
    outputs = tuple(
        TensorSpec(labels[i], graph.values[value].dtype, graph.values[value].shape)
        for i, value in enumerate(graph.outputs)
    )
    plain = form in (0, {"tuple": list(range(len(outputs)))})
    return Signature(tuple(inputs), outputs, dims, in_structure, None if plain else form)


def _dimension(size: torch.SymInt, program: Program, names: dict[str, str]) -> tuple[str, Dimension]:
    """The name and range of an input's dynamic dimension."""
    expr = size.node.expr
    symbol: Any
    factor, symbol = expr.as_coeff_Mul()
    label = str(expr.xreplace({s: type(s)(names.get(str(s), str(s)), integer=True) for s in expr.free_symbols}))
    found = program.range_constraints.get(symbol)
    low, high = (0, None) if found is None else (int(found.lower), found.upper)
    upper = None if high is None or not getattr(high, "is_Integer", isinstance(high, int)) else int(high) * int(factor)
    return label, Dimension(low * int(factor), upper, int(factor))


def _in_structure(program: Program, leaves: list[Any]) -> Any:
    """Positional and keyword arguments by name; None if they are just the input tensors."""
    spec = program.call_spec.in_spec
    if spec is None:
        return None
    form = structure(spec, list(leaves))
    args, kwargs = form["tuple"]
    positional = args.get("tuple", args.get("list"))
    by_name = kwargs.get("dict", {})
    if not by_name and all(isinstance(a, int) for a in positional):
        return None
    call = next((c for c in program.module_call_graph if c.fqn == ""), None)
    names = getattr(call.signature, "forward_arg_names", None) if call is not None and call.signature else None
    labels = list(names or [])[: len(positional)]
    labels += [f"argument_{i}" for i in range(len(labels), len(positional))]
    return {"args": dict(zip(labels, positional, strict=True)), "kwargs": by_name}
