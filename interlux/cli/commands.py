"""What the sub-commands do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import UsageError

from ..ir import trees
from ..ir.errors import UnsupportedError
from ..ir.graph import Graph, graph_of
from ..ir.model import Model, TensorSpec
from ..ir.view import brief
from .sources import WEIGHTS, Opened, open_source
from .state import State
from .text import table

if TYPE_CHECKING:
    from ..runtime.verify import Report

SAVED_AGAINST_ITSELF = "the source is a saved interlux model: the reference is interlux itself, on JAX in float64"


def convert(
    state: State,
    src: str,
    dst: str,
    opset: int | None,
    backends: tuple[str, ...] | None,
    no_verify: bool,
    inputs: str | None,
    arch: str | None,
    trust: bool,
    examples: Sequence[str],
    name: str | None,
    report: str | None,
) -> None:
    """`interlux convert`."""
    from .places import check_distinct
    from .targets import ONNX, Target

    if no_verify and (report or inputs or backends):
        raise UsageError("--no-verify leaves out what --report, --inputs and --backend are for")
    state.result |= {"source": src, "destination": dst, "verification": None}
    target = Target.of(dst, opset)
    check_distinct({"DST": dst, "--report": report}, {"the source": src, "--inputs": inputs})
    _check_report(report)
    with state.step(f"import {src}"):
        opened = open_source(src, arch, examples, name, trust)
    model = opened.model
    state.result["model"] = _about(model)
    with target.staged(model, state) as staged:
        with state.step(f"write {target.path.name} and read it again"):
            about = staged.check(model)
        found = None
        if no_verify:
            state.note("not verified (--no-verify)")
        else:
            from .checks import installed_backends, written_onnx

            names = backends or installed_backends()
            hops = written_onnx(staged.path, names) if target.kind == ONNX else {}
            found = _verified(state, opened, names, hops, inputs)
        with state.commit():
            if found is not None:
                _report(state, found, report)
                found.raise_if_failed()
            staged.commit()
            state.written.append(dst)
            state.result["written"] = about
    form = {"onnx": f"ONNX, opset {about.get('opset')}", "folder": "saved model"}.get(target.kind, "weights")
    state.line(f"wrote {dst} ({form}, {about['bytes'] / 1e6:.2f} MB)")


def verify(
    state: State,
    a: str,
    b: str | None,
    backends: tuple[str, ...] | None,
    inputs: str | None,
    arch: str | None,
    trust: bool,
    examples: Sequence[str],
    report: str | None,
) -> None:
    """`interlux verify`."""
    from .checks import installed_backends
    from .places import check_distinct

    state.result |= {"source": a, "target": b}
    names = backends or installed_backends()
    check_distinct({"--report": report}, {"A": a, "B": b, "--inputs": inputs})
    _check_report(report)
    with state.step(f"import {a}"):
        opened = open_source(a, arch, examples, trust=trust)
    state.result["model"] = _about(opened.model)
    if b is None:
        found = _verified(state, opened, names, {}, inputs)
    else:
        with state.step(f"import {b}"):
            other = open_source(b)
        hops, notes = _hops(opened, other, names)
        for note in notes:
            state.note(note)
        found = _verified(state, opened, (), hops, inputs)
    with state.commit():
        _report(state, found, report)
    found.raise_if_failed()


def inspect(state: State, src: str, arch: str | None, trust: bool, examples: Sequence[str]) -> None:
    """`interlux inspect`."""
    with state.step(f"import {src}"):
        model = open_source(src, arch, examples, trust=trust).model
    state.line(str(model))
    state.result |= {"source": src, "model": _about(model), "nodes": _nodes(model)}
    for kind, tree in (("params", model.params), ("states", model.states)):
        state.result[kind] = [
            {"name": trees.name_of(path), "dtype": leaf.dtype.name, "shape": list(leaf.shape)}
            for path, leaf in trees.leaves(tree)
        ]
    state.result["aliases"] = {trees.name_of(k): trees.name_of(v) for k, v in model.aliases.items()}
    state.result["notes"] = list(model.notes)


def run(
    state: State,
    src: str,
    arrays: str,
    output: str | None,
    backend: str | None,
    device: str,
    arch: str | None,
    trust: bool,
) -> None:
    """`interlux run`."""
    from ..api import compile
    from .arrays import bound, npz, read_npz, safe_names, summary
    from .checks import installed_backends
    from .places import check_distinct, check_file, write_atomically

    backend = backend or installed_backends()[0]
    if output is not None:
        check_distinct({"--output": output}, {"the source": src, "--input": arrays})
        check_file("--output", output)
    given = read_npz(arrays)
    with state.step(f"import {src}"):
        model = open_source(src, arch, given, trust=trust).model
    signature = model.require_signature()
    ready = bound(signature, given)
    with state.step(f"run on {backend}, {device}"):
        results = compile(model, backend, device).run(ready)
    names = [spec.name for spec in signature.outputs]
    rows = [summary(name, array) for name, array in zip(names, results, strict=True)]
    state.result |= {"source": src, "backend": backend, "device": device, "outputs": rows, "written": None}
    state.line(table(["output", "dtype", "shape", "min", "mean", "max"], [list(row.values()) for row in rows]))
    if output is not None:
        members = safe_names(names)
        for name, member in zip(names, members, strict=True):
            if member != name:
                state.note(f"output {name!r} is named {member!r} in {output}")
        content = npz(members, results)
        with state.commit():
            write_atomically(Path(output), content)
            state.written.append(output)
            state.result["written"] = output
        state.line(f"wrote {output}")


# --- verification


def _verified(
    state: State, opened: Opened, backends: Sequence[str], hops: dict[str, Any], inputs: str | None
) -> Report:
    """Runs the verification and shows it."""
    from ..api import needs

    with needs("jax"):
        from ..runtime.verify import ModelSource
        from ..runtime.verify import verify as check

    arrays = None
    if inputs is not None:
        from .arrays import read_npz

        arrays = read_npz(inputs)
    with state.step(f"verify {', '.join([*backends, *hops])}"):
        source = opened.source()
        if isinstance(source, ModelSource):
            state.note(SAVED_AGAINST_ITSELF)
        found = check(source, opened.model, backends, runners=hops, inputs=arrays)
    state.line(str(found))
    state.result["verification"] = found.to_dict()
    return found


def _report(state: State, found: Report, report: str | None) -> None:
    """Writes the report, also of what failed."""
    if report is None:
        return
    from .places import write_atomically

    write_atomically(Path(report), found.to_html())
    state.written.append(report)
    state.result["report"] = report
    state.line(f"report: {report}")


def _check_report(report: str | None) -> None:
    """What would make the report fail, before the work and not after it."""
    import importlib.util

    from .places import check_file

    if report is None:
        return
    if importlib.util.find_spec("jinja2") is None:
        raise UnsupportedError("--report needs jinja2: pip install 'interlux[report]'")
    check_file("--report", report)


def _hops(a: Opened, b: Opened, backends: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """What of B is compared with A: B itself where something else than interlux can run it, and its import."""
    from .checks import Hop, compiled, matched_signatures, onnx_file

    if b.path is None or b.path.suffix.lower() in WEIGHTS:
        raise UnsupportedError(f"{b.text} cannot be compared: B is a .onnx or .pt2 file or the folder of a saved model")
    inputs, outputs, notes = matched_signatures(a.model.require_signature(), b.model.require_signature())
    path, hops = b.path, {}
    if path.suffix.lower() == ".onnx":
        hops["onnxruntime (file)"] = Hop(lambda: onnx_file(path), inputs, outputs)
    elif path.suffix.lower() == ".pt2":
        hops["torch (file)"] = Hop(lambda: (b.source().run, None), inputs, outputs)
    for name in backends:
        hops[f"{name} (import)"] = Hop(lambda name=name: compiled(b.model, name), inputs, outputs)  # type: ignore[misc]
    return hops, notes


# --- what is said about a model


def _about(model: Model) -> dict[str, Any]:
    def specs(tensors: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
        return [
            {"name": t.name, "dtype": t.dtype, "shape": None if t.shape is None else list(t.shape)}
            | ({"container": t.container} if t.container else {})
            for t in tensors
        ]

    about: dict[str, Any] = {
        "name": str(model.metadata.get("name", type(model.layer).__name__)),
        "from": str(model.metadata.get("source", "interlux")),
        "parameters": trees.count(model.params),
        "states": trees.count(model.states),
        "bytes": trees.size_in_bytes(model.params) + trees.size_in_bytes(model.states),
    }
    if model.signature is not None:
        about |= {
            "inputs": specs(model.signature.inputs),
            "outputs": specs(model.signature.outputs),
            "dims": {
                n: {"minimum": d.minimum, "maximum": d.maximum, "multiple_of": d.multiple_of}
                for n, d in model.signature.dims.items()
            },
        }
    return about


def _nodes(model: Model) -> list[dict[str, Any]]:
    graph = graph_of(model.layer)
    return [] if graph is None else [_node(node, graph) for node in graph.nodes]


def _node(node: Any, graph: Graph) -> dict[str, Any]:
    return {
        "name": node.name,
        "layer": brief(node.layer),
        "module": node.scope[-1].path if node.scope else "",
        "inputs": list(node.inputs),
        "outputs": [{"name": o, "type": str(graph.values[o]) if o in graph.values else None} for o in node.outputs],
        "arrays": [trees.name_of(path) for _, path in (*node.params, *node.states)],
        "source": node.source,
    }
