"""The gate in front of `.pt2` files: hostile files are refused, damaged ones explained, good ones loaded unchanged.

Each attack is first shown to work against plain `torch.export.load`: without that, a test of its refusal would also
pass for a payload that never worked.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import random
import re
import struct
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from interlux.converters.archive import ArchiveLimits, read_archive
from interlux.converters.torch.pt2 import Pt2Limits, load_exported_program
from interlux.ir.errors import (
    InterluxError,
    InvalidModelError,
    ResourceLimitError,
    UnsafeInputError,
    UnsupportedError,
)

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.filterwarnings("ignore")]

MARKER = "MARK"  # without a dot or slash: names in a graph are split at dots. Tests run in their own folder.
OPEN = f"open('{MARKER}','w')"
Edit = Callable[[Any], Any]


class Small(torch.nn.Module):
    """One weight, a dynamic batch, one keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 2))

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight) * scale


INPUTS = (torch.ones(4, 3),), {"scale": torch.ones(1)}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sound archive; all its files lie in the folder `good/`."""
    path = tmp_path_factory.mktemp("pt2") / "good.pt2"
    shapes = {"x": {0: torch.export.Dim("batch", min=2, max=64)}, "scale": None}
    torch.export.save(torch.export.export(Small().eval(), *INPUTS, dynamic_shapes=shapes), path)
    return path


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Payload:
    """Unpickling this creates the marker file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (MARKER, "w")


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def write(contents: dict[str, bytes], path: Path = Path("bad.pt2"), method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(f"good/{name}", data)
    return path


def edited(good: Path, member: str, edit: Edit) -> Path:
    """A copy of the archive whose JSON member was changed by `edit` (in place, or by returning another)."""
    contents = members(good)
    document = json.loads(contents[member])
    changed = edit(document)
    contents[member] = json.dumps(document if changed is None else changed).encode()
    return write(contents)


MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"


def run_plainly(path: Path) -> bool:
    """What a user without the gate would do: load and run. Whether the payload ran."""
    # Most payloads leave the loader with something it cannot use; by then they have run.
    with contextlib.suppress(Exception):
        torch.export.load(path).module()(*INPUTS[0], **INPUTS[1])
    ran = Path(MARKER).exists()
    Path(MARKER).unlink(missing_ok=True)
    return ran


def assert_refused(path: Path, kind: type[InterluxError] | tuple[type[InterluxError], ...], text: str) -> None:
    with pytest.raises(kind) as caught:
        load_exported_program(path)
    message = str(caught.value)
    assert re.search(text, message), message
    assert message.isprintable(), message
    assert len(message) < 700, message
    assert not Path(MARKER).exists()


# The three known attacks, and the others that reading the loader showed ----------------------------------------------


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_sample_inputs_are_never_unpickled(good: Path) -> None:
    path = write(members(good) | {"data/sample_inputs/model.pt": saved(((Payload(),), {}))})
    assert run_plainly(path)
    program = load_exported_program(path)
    program.module()(*INPUTS[0], **INPUTS[1])
    assert program.example_inputs is None
    assert not Path(MARKER).exists()


def test_pickled_weight(good: Path) -> None:
    contents = members(good)
    config = json.loads(contents[WEIGHTS])
    config["config"]["weight"]["use_pickle"] = True
    path = write(contents | {WEIGHTS: json.dumps(config).encode(), "data/weights/weight_0": saved(Payload())})
    assert run_plainly(path)
    assert_refused(path, UnsafeInputError, "weight_0.*pickled")


@pytest.mark.parametrize("stored_as", ["tensor_0", "custom_obj_0", "opaque_obj_0"])
@pytest.mark.parametrize("use_pickle", [True, False])
def test_pickled_constant(good: Path, stored_as: str, use_pickle: bool) -> None:
    contents = members(good)
    meta = json.loads(contents[WEIGHTS])["config"]["weight"]["tensor_meta"]
    entry = {"path_name": stored_as, "is_param": False, "use_pickle": use_pickle, "tensor_meta": meta}
    contents[CONSTANTS] = json.dumps({"config": {"c": entry}}).encode()
    contents[f"data/constants/{stored_as}"] = saved(Payload()) if stored_as == "tensor_0" else pickle.dumps(Payload())
    path = write(contents)
    # A tensor member that is not marked as pickled is read as raw bytes. Custom objects go to TorchScript's unpickler,
    # which knows no global functions, so this payload does not run there; a registered class's own code would.
    runs = stored_as == "opaque_obj_0" or (stored_as == "tensor_0" and use_pickle)
    # With use_pickle false torch builds the file map first, which fails on an opaque member of an odd size.
    assert run_plainly(path) == runs or not use_pickle
    if stored_as == "tensor_0" and not use_pickle:
        load_or_refuse(path)
    else:
        assert_refused(path, UnsafeInputError, f"{stored_as}.*pickled")


@pytest.mark.parametrize("member", ["data/weights/model.pt", "data/constants/model.pt"])
def test_legacy_pickled_member(good: Path, member: str) -> None:
    path = write(members(good) | {member: saved({"weight": Payload()})})
    assert run_plainly(path)
    assert_refused(path, UnsafeInputError, "pickled weights")


def symbolic_sizes(document: Any) -> Iterator[dict[str, Any]]:
    for meta in document["graph_module"]["graph"]["tensor_values"].values():
        for size in meta["sizes"]:
            if "as_expr" in size:
                yield size["as_expr"]


@pytest.mark.parametrize(
    "expression",
    [
        OPEN,
        f"Symbol('s0', integer=True) + {OPEN}",
        f'Max("{OPEN}", 1)',  # a text inside an expression is evaluated again
    ],
)
def test_expression_that_runs_code(good: Path, expression: str) -> None:
    def edit(document: Any) -> None:
        for size in symbolic_sizes(document):
            size["expr_str"] = expression

    path = edited(good, MODEL, edit)
    assert run_plainly(path)
    assert_refused(path, UnsafeInputError, r"sizes.*expr_str.*expression")


@pytest.mark.parametrize(
    "expression",
    [
        "9**9**9",
        "Pow(Integer(9), Pow(Integer(9), Integer(9)))",
        "LShift(Integer(1), Integer(99999999999))",
        "Pow(Pow(Pow(Integer(999999999), Integer(60)), Integer(60)), Integer(60))",
        "Pow(Add(" + ", ".join(f"Symbol('s{index}', integer=True)" for index in range(40)) + "), Integer(60))",
        "TruncToInt(Float('1e999999999', precision=53))",
        "(" * 5000 + "1" + ")" * 5000,
        "-" * 15000 + "1",
        "1+" * 8000 + "1",
        "Symbol('s0').func",
        "Symbol(s0)",
        "Symbol('s0', **{})",
        "Symbol('__class__')",
        "Symbol('u99999999999')",
        "().__class__.__base__",
        "s0.__class__",
        "(lambda: 1)()",
        "[s0 for s0 in s1]",
        "f'{s0}'",
        "s0 if s0 else s1",
        "Lambda(s0, s0)",
        "Function('f')",
        "sympify('1')",
        "Ｍax(1, 2)",  # full-width letters, which Python reads as Max
        "s0 # comment",
        "s0\nimport os",
        "",
        "x" * 20_000,
    ],
)
def test_other_expressions_are_refused_fast(good: Path, expression: str) -> None:
    def edit(document: Any) -> None:
        for size in symbolic_sizes(document):
            size["expr_str"] = expression

    begin = time.perf_counter()
    assert_refused(edited(good, MODEL, edit), UnsafeInputError, r"sizes.*expr_str.*expression")
    assert time.perf_counter() - begin < 5


def test_expression_in_a_range_constraint(good: Path) -> None:
    # torch 2.13 only compares these keys (and counts up to an unbacked symbol's number); they are checked all the same.
    for key, kind in ((OPEN, UnsafeInputError), ("u9999999999", UnsafeInputError), ("u1 + s0", InvalidModelError)):
        path = edited(
            good, MODEL, lambda d, key=key: d["range_constraints"].update({key: {"min_val": 0, "max_val": 1}})
        )
        assert_refused(path, kind, "range_constraints")


def renamed(document: Any, old: str, new: str) -> Any:
    """The document with a value's name replaced wherever it stands as a whole text or key."""
    text = json.dumps(document)
    return json.loads(text.replace(json.dumps(old), json.dumps(new)))


def test_value_name_that_runs_code(good: Path) -> None:
    # The names of inputs become the parameters of a generated Python function: a default value runs when it is defined.
    path = edited(good, MODEL, lambda document: renamed(document, "scale", f"scale={OPEN}"))
    assert run_plainly(path)
    assert_refused(path, UnsafeInputError, "not a plain name")


def test_weight_name_that_runs_code(good: Path) -> None:
    # The statement that reads the weight is getattr(self, "<name>") in the source of module(); any attribute will do.
    name = f'training");{OPEN}#'
    contents = members(good)
    contents[MODEL] = json.dumps(renamed(json.loads(contents[MODEL]), "weight", name)).encode()
    contents[WEIGHTS] = json.dumps(renamed(json.loads(contents[WEIGHTS]), "weight", name)).encode()
    path = write(contents)
    assert run_plainly(path)
    assert_refused(path, UnsafeInputError, "not a plain name")


@pytest.mark.parametrize("name", ["__class__.weight", "__dict__", "a.__init__.b", "we\night", "w" * 2000])
def test_other_weight_names_are_refused(good: Path, name: str) -> None:
    contents = members(good)
    contents[MODEL] = json.dumps(renamed(json.loads(contents[MODEL]), "weight", name)).encode()
    assert_refused(write(contents), UnsafeInputError, "not a plain name")


def in_spec(document: Any) -> dict[str, Any]:
    found: dict[str, Any] = document["graph_module"]["module_call_graph"][0]["signature"]
    return found


def test_keyword_name_that_runs_code(good: Path) -> None:
    # Keyword arguments' names stand between quotes in the generated forward().
    def edit(document: Any) -> None:
        version, tree = json.loads(in_spec(document)["in_spec"])
        tree["children_spec"][1]["context"] = json.dumps([f"a':{OPEN},'scale"])
        in_spec(document)["in_spec"] = json.dumps([version, tree])

    path = edited(good, MODEL, edit)
    # forward() itself: a call of the module compares the keywords with the structure first.
    with contextlib.suppress(Exception):
        torch.export.load(path).module().forward(*INPUTS[0], **INPUTS[1])
    assert Path(MARKER).exists()
    Path(MARKER).unlink()
    assert_refused(path, UnsafeInputError, "in_spec")


@pytest.mark.parametrize("how", ["defaultdict", "enum"])
def test_structure_that_imports_a_module(good: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(f"evil_{how}.py").write_text(f"{OPEN}\nclass E: pass\n")
    monkeypatch.syspath_prepend(Path.cwd())

    def edit(document: Any) -> None:
        leaf = {"type": None, "context": None, "children_spec": []}
        if how == "enum":
            key = {"__enum__": True, "fqn": f"evil_{how}:E", "name": "a"}
            tree = {"type": "builtins.dict", "context": json.dumps([key]), "children_spec": [leaf]}
        else:
            factory = {"default_factory_module": f"evil_{how}", "default_factory_name": "E", "dict_context": ["a"]}
            tree = {"type": "collections.defaultdict", "context": factory, "children_spec": [leaf]}
        in_spec(document)["out_spec"] = json.dumps([1, tree])

    path = edited(good, MODEL, edit)
    assert run_plainly(path)
    assert_refused(path, (UnsafeInputError, UnsupportedError), "out_spec")


def test_guard_code_is_dropped(good: Path) -> None:
    path = edited(good, MODEL, lambda document: document.update(guards_code=[f"{OPEN} is not None"]))
    assert run_plainly(path)
    program = load_exported_program(path)
    program.module()(*INPUTS[0], **INPUTS[1])
    assert not Path(MARKER).exists()


def test_all_unknown_operators_are_listed(good: Path) -> None:
    targets = [
        "torch.os.system",  # torch resolves it, its verifier refuses it
        "torch.ops.aten.from_file.default",  # would create and write files when run
        "torch.ops.aten.__class__.mro",
        "torch.ops.mylib.op.default",
        "torch.ops.higher_order.call_torchbind",
        "torch.ops.aten.relu._op",
        "_operator.attrgetter",
        "math.__loader__",
        "#ext:op",
        "evil\n\x1b[31m",
    ]

    def edit(document: Any) -> None:
        nodes = document["graph_module"]["graph"]["nodes"]
        nodes.extend({**nodes[0], "target": target} for target in targets)

    path = edited(good, MODEL, edit)
    assert_refused(path, UnsupportedError, "operators")
    with pytest.raises(UnsupportedError) as caught:
        load_exported_program(path)
    assert len(caught.value.items) == len(targets)


def test_annotations_that_torch_resolves_are_dropped(good: Path) -> None:
    def edit(document: Any) -> None:
        for node in document["graph_module"]["graph"]["nodes"]:
            node["metadata"] |= {"source_fn_stack": "a,torch.os.system", "custom": '{"a": 1}', "from_node": "[" * 9999}

    program = load_exported_program(edited(good, MODEL, edit))
    assert all("source_fn_stack" not in node.meta for node in program.graph.nodes)
    assert any("nn_module_stack" in node.meta for node in program.graph.nodes)


@pytest.mark.parametrize("member", ["data/aotinductor/model/x.so", "data/executorch/a.pte"])
def test_compiled_members(good: Path, member: str) -> None:
    assert_refused(write(members(good) | {member: b"x"}), UnsafeInputError, "compiled code")


def test_custom_object_in_the_graph(good: Path) -> None:
    spec = {"custom_obj": {"arg": {"name": "o", "class_fqn": "a.b"}, "custom_obj_name": "o"}}
    path = edited(good, MODEL, lambda d: d["graph_module"]["signature"]["input_specs"].append(spec))
    assert_refused(path, UnsafeInputError, "custom object")


# Weights ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("sizes", [{"as_int": 3}, {"as_int": 3}], UnsafeInputError),
        ("sizes", [{"as_int": 1 << 40}, {"as_int": 1 << 40}], UnsafeInputError),
        ("sizes", [{"as_int": -3}, {"as_int": 2}], UnsafeInputError),
        ("strides", [{"as_int": 1000}, {"as_int": 1}], UnsafeInputError),
        ("strides", [{"as_int": -2}, {"as_int": 1}], UnsafeInputError),
        ("storage_offset", {"as_int": 1}, UnsafeInputError),
        ("storage_offset", {"as_int": (1 << 63) - 1}, UnsafeInputError),
        ("sizes", [{"as_int": 1 << 70}, {"as_int": 2}], InvalidModelError),
        ("sizes", [{"as_int": True}, {"as_int": 2}], InvalidModelError),
        ("sizes", [{"as_int": 6}], InvalidModelError),
        ("sizes", [{"as_int": 2}, {"as_int": 3}], InvalidModelError),  # disagrees with the graph
        ("dtype", 8, UnsafeInputError),  # float64 needs twice the bytes
        ("dtype", 4, InvalidModelError),  # int32: no gradient
        ("dtype", 99, InvalidModelError),
        ("layout", 1, InvalidModelError),
    ],
)
def test_weight_shape_is_checked(good: Path, field: str, value: Any, kind: type[InterluxError]) -> None:
    def edit(config: Any) -> None:
        config["config"]["weight"]["tensor_meta"][field] = value

    assert_refused(edited(good, WEIGHTS, edit), kind, "weight")


def test_view_that_expands_without_bound(good: Path) -> None:
    def edit(config: Any) -> None:
        meta = config["config"]["weight"]["tensor_meta"]
        meta["sizes"], meta["strides"] = [{"as_int": 1 << 30}] * 2, [{"as_int": 0}] * 2

    assert_refused(edited(good, WEIGHTS, edit), UnsafeInputError, "without bound")


def test_weight_bytes(good: Path) -> None:
    contents = members(good)
    assert_refused(write(contents | {"data/weights/weight_0": b"1234"}), UnsafeInputError, "beyond its 4 stored")
    assert_refused(write(contents | {"data/weights/weight_0": b"123"}), InvalidModelError, "multiple of 4")
    assert_refused(write(contents | {"data/weights/weight_0": b""}), InvalidModelError, "no stored data")
    del contents["data/weights/weight_0"]
    assert_refused(write(contents), InvalidModelError, "not there")
    path = edited(good, WEIGHTS, lambda config: config["config"]["weight"].update(path_name="../weight_0"))
    assert_refused(path, UnsafeInputError, "path_name")
    path = edited(good, WEIGHTS, lambda config: config["config"].clear())
    assert_refused(path, InvalidModelError, "does not hold")


# Files that are something else ----------------------------------------------------------------------------------------


def test_files_that_are_no_archive(good: Path) -> None:
    raw = good.read_bytes()
    cases = {
        "cut.pt2": (raw[: len(raw) // 2], "no zip directory found.*its end is missing"),
        "text.pt2": (b"hello, this is a text\n" * 9, r"is not a \.pt2 archive.*a text that begins with"),
        "empty.pt2": (b"", "it is empty"),
        "binary.pt2": (b"\x80\x02}q\x00." * 20, "begins with the bytes 80 02"),
        "front.pt2": (b"MZ" * 50 + raw, "not a sound"),
        "tail.pt2": (raw + b"x", "no zip directory found"),
    }
    for name, (data, text) in cases.items():
        Path(name).write_bytes(data)
        assert_refused(Path(name), InvalidModelError, text)
    assert_refused(Path("missing.pt2"), InvalidModelError, "missing.pt2 was not found")
    assert_refused(Path(), InvalidModelError, "not a regular file")
    for cut in range(1, 60):
        Path("cut.pt2").write_bytes(raw[:-cut])
        assert_refused(Path("cut.pt2"), InvalidModelError, "cut.pt2")


def test_archives_of_another_kind(good: Path) -> None:
    contents = members(good)
    model = contents.pop(MODEL)
    assert_refused(write(contents), InvalidModelError, "no member 'models/model.json'")
    with zipfile.ZipFile("old.pt2", "w") as archive:
        archive.writestr("version", "8.1")
        archive.writestr("serialized_exported_program.json", model)
    assert_refused(Path("old.pt2"), UnsupportedError, r"torch before 2\.8")
    torch.save({"a": torch.ones(2)}, "state.pt2")
    assert_refused(Path("state.pt2"), InvalidModelError, r"torch\.save")
    assert_refused(write(members(good) | {"archive_version": b"7"}), UnsupportedError, "archive_version")
    path = edited(good, MODEL, lambda document: document["schema_version"].update(major=9))
    assert_refused(path, UnsupportedError, "graph format 9")
    path = edited(good, MODEL, lambda document: document["schema_version"].update(major=0, minor=0))
    assert_refused(path, UnsupportedError, "graph format 0")


# The zip archive ------------------------------------------------------------------------------------------------------


def test_duplicate_members(good: Path) -> None:
    path = write(members(good))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("good/" + MODEL, b"{}")
    assert_refused(path, UnsafeInputError, "two members named")


@pytest.mark.parametrize(
    "name", ["../up", "/abs", "a/../b", "a//b", "c:\\x", "a\\..\\b", "C:/x", "a\x01b", "./a", ".."]
)
def test_names_that_leave_the_archive(name: str) -> None:
    with zipfile.ZipFile("bad.pt2", "w") as archive:
        archive.writestr(zipfile.ZipInfo("plain"), b"x")
        entry = zipfile.ZipInfo("plain2")
        entry.filename = name
        archive.writestr(entry, b"x")
    assert_refused(Path("bad.pt2"), UnsafeInputError, "only relative names")


def test_links_and_encryption() -> None:
    with zipfile.ZipFile("bad.pt2", "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert_refused(Path("bad.pt2"), UnsafeInputError, "is a link")
    with zipfile.ZipFile("bad.pt2", "w") as archive:
        archive.writestr("secret", b"x")
    patch(Path("bad.pt2"), b"PK\x01\x02", 8, struct.pack("<H", 1))
    assert_refused(Path("bad.pt2"), UnsafeInputError, "encrypted")


def patch(path: Path, magic: bytes, offset: int, data: bytes) -> None:
    raw = bytearray(path.read_bytes())
    at = raw.rindex(magic) + offset
    raw[at : at + len(data)] = data
    path.write_bytes(raw)


def test_bombs() -> None:
    with zipfile.ZipFile("bad.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(20 << 20))
    assert_refused(Path("bad.pt2"), UnsafeInputError, "expands from")
    with pytest.raises(UnsafeInputError, match="expands to more than"):
        read_archive("bad.pt2", limits=ArchiveLimits(max_ratio=10_000, max_total_bytes=1 << 20))
    # The directory promises a small member, the deflate data goes on.
    patch(Path("bad.pt2"), b"PK\x01\x02", 24, struct.pack("<L", 1000))
    patch(Path("bad.pt2"), b"PK\x03\x04", 22, struct.pack("<L", 1000))
    with pytest.raises(UnsafeInputError, match="inflates beyond the 1000 bytes"):
        read_archive("bad.pt2")["zeros"]
    with zipfile.ZipFile("bad.pt2", "w") as archive:
        for index in range(50):
            archive.writestr(f"m{index}", b"")
    with pytest.raises(UnsafeInputError, match="50 members"):
        read_archive("bad.pt2", limits=ArchiveLimits(max_members=49))


def test_headers_that_disagree() -> None:
    def fresh() -> Path:
        with zipfile.ZipFile("bad.pt2", "w") as archive:
            archive.writestr("first", b"12345678")
            archive.writestr("name", b"12345678")
        return Path("bad.pt2")

    patch(fresh(), b"PK\x03\x04", 30, b"eman")
    assert_refused(Path("bad.pt2"), UnsafeInputError, "is named 'eman' in its own header")
    patch(fresh(), b"PK\x03\x04", 22, struct.pack("<L", 7))
    assert_refused(Path("bad.pt2"), UnsafeInputError, "8 bytes in the directory and 7 in its own header")
    patch(fresh(), b"PK\x01\x02", 24, struct.pack("<L", 7))
    assert_refused(Path("bad.pt2"), UnsafeInputError, "two sizes")
    patch(fresh(), b"PK\x01\x02", 42, struct.pack("<L", 0))
    assert_refused(Path("bad.pt2"), UnsafeInputError, "'first' in its own header")
    patch(fresh(), b"PK\x05\x06", 10, struct.pack("<H", 1))
    assert_refused(Path("bad.pt2"), InvalidModelError, "split")
    patch(fresh(), b"PK\x05\x06", 8, struct.pack("<2H", 1, 1))
    assert_refused(Path("bad.pt2"), UnsafeInputError, "more than the 1 members")


def test_streamed_size_behind_the_data(good: Path) -> None:
    # torch writes sizes behind the data and a zip64 record; both must agree with the directory.
    raw = good.read_bytes()
    at = raw.rindex(b"PK\x07\x08")
    Path("bad.pt2").write_bytes(raw[: at + 8] + b"\x01" + raw[at + 9 :])
    assert_refused(Path("bad.pt2"), UnsafeInputError, "disagrees with the directory")
    at = raw.rindex(b"PK\x06\x06")
    Path("bad.pt2").write_bytes(raw[: at + 32] + b"\x01" + raw[at + 33 :])
    assert_refused(Path("bad.pt2"), UnsafeInputError, "end records disagree")


def test_damaged_member(good: Path) -> None:
    raw = bytearray(good.read_bytes())
    at = raw.index(members(good)["data/weights/weight_0"])
    raw[at] ^= 1
    Path("bad.pt2").write_bytes(raw)
    assert_refused(Path("bad.pt2"), InvalidModelError, "weight_0.*checksum")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reading_members(method: int) -> None:
    contents = {"a": random.Random(0).randbytes(1 << 20) * 2 + b"1", "b": b"", "c": b"x"}
    with read_archive(write(contents, method=method)) as archive:
        for name, data in contents.items():
            member = f"good/{name}"
            buffer = bytearray(len(data))
            archive.read_into(member, memoryview(buffer))
            assert archive[member] == data == bytes(archive.view(member)) == bytes(buffer)
        with pytest.raises(ResourceLimitError, match="more than the limit of 10"):
            archive.read("good/a", max_bytes=10)
        with pytest.raises(KeyError):
            archive["good/d"]


# Damaged JSON ---------------------------------------------------------------------------------------------------------


def load_or_refuse(path: Path) -> None:
    """Loading may succeed or be refused in one line; nothing else may come out."""
    reason = ""
    try:
        load_exported_program(path)
    except InterluxError as error:
        reason = str(error)
    assert "\n" not in reason
    assert not Path(MARKER).exists()


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (b"", InvalidModelError, "not valid JSON"),
        (b"\xff\xfe", InvalidModelError, "not valid JSON"),
        (b"[" * 100_000, UnsafeInputError, "nested too deeply"),
        (b'{"a": 1, "a": 2}', InvalidModelError, "one key twice"),
        (b'{"a": NaN}', InvalidModelError, "NaN"),
        (b'{"a": ' + b"9" * 5000 + b"}", InvalidModelError, "not valid JSON"),
        (b"[]", InvalidModelError, "not an object"),
        (b"{}", InvalidModelError, "has no 'graph_module'"),
    ],
)
def test_json_that_is_none(good: Path, data: bytes, kind: type[InterluxError], text: str) -> None:
    assert_refused(write(members(good) | {MODEL: data}), kind, text)


def test_json_limits(good: Path) -> None:
    with pytest.raises(ResourceLimitError, match="limit of 100"):
        load_exported_program(good, limits=Pt2Limits(max_json_bytes=100))

    def edit(document: Any) -> None:
        node = document["graph_module"]["graph"]["nodes"][0]
        for _ in range(300):
            node["inputs"] = [
                {"name": "", "arg": {"as_string_to_argument": {"a": node["inputs"][0]["arg"]}}, "kind": 1}
            ]

    assert_refused(edited(good, MODEL, edit), UnsafeInputError, "nested too deeply")


MUTATIONS = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@MUTATIONS
@given(data=st.data())
def test_flipped_and_cut_bytes(good: Path, data: st.DataObject) -> None:
    contents = members(good)
    member = data.draw(st.sampled_from([MODEL, WEIGHTS]))
    raw = bytearray(contents[member])
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    load_or_refuse(write(contents | {member: bytes(raw)}))


def places(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """All (container, key) pairs of a JSON document."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            places(value[key], found)
    return found


@MUTATIONS
@given(data=st.data())
def test_replaced_values(good: Path, data: st.DataObject) -> None:
    """Valid JSON with wrong contents gets further than flipped bytes do."""
    contents = members(good)
    member = data.draw(st.sampled_from([MODEL, MODEL, WEIGHTS]))
    document = json.loads(contents[member])
    for _ in range(data.draw(st.integers(1, 2))):
        found = places(document, [])
        container, key = found[data.draw(st.integers(0, len(found) - 1))]
        other, other_key = found[data.draw(st.integers(0, len(found) - 1))]
        action = data.draw(st.sampled_from(["leaf", "leaf", "move", "delete"]))
        if action == "delete":
            del container[key]
        elif action == "move":
            container[key] = json.loads(json.dumps(other[other_key]))
        else:
            leaves = st.sampled_from([None, True, 0, -1, 1 << 62, 1.5, "", "x", "weight", "Infinity", OPEN, [], {}])
            container[key] = data.draw(leaves)
    load_or_refuse(write(contents | {member: json.dumps(document).encode()}))


# Files that are as they should be -------------------------------------------------------------------------------------


class Tagger(torch.nn.Module):
    """An LSTM with an embedding tied to its output layer, a buffer, and a dict as output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 8)
        self.lstm = torch.nn.LSTM(8, 8, batch_first=True, bidirectional=False)
        self.out = torch.nn.Linear(8, 20, bias=False)
        self.out.weight = self.embedding.weight
        self.register_buffer("scale", torch.arange(20.0))
        self.register_buffer("mask", torch.ones(20, dtype=torch.bool), persistent=False)

    def forward(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden, (last, _) = self.lstm(self.embedding(tokens))
        logits = self.out(hidden) * self.scale
        return {"logits": logits.masked_fill(~self.mask, 0.0), "last": last, "flat": logits.reshape(-1, 40)}


class Shapes(torch.nn.Module):
    """Arithmetic on sizes, control flow with sub-graphs, a data-dependent size and a derived dimension."""

    def forward(self, x: torch.Tensor, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        halves = x.reshape(-1, 2)
        with torch.no_grad():
            larger = torch.nn.functional.interpolate(image, scale_factor=1.5)
        count = torch.nonzero(x).shape[0]
        branch = torch.cond(x.sum() > 0, lambda value: value + 1, lambda value: value * 2, (x,))
        return halves, larger, torch.full((count + 1,), 2.0), x[: max(x.shape[0] // 2, 3)], branch


class Convolution(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.BatchNorm2d(4), torch.nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).to(torch.float16).flatten(1)[:, ::3] + torch.tensor([1.0])


def batch(**bounds: int) -> Any:
    return torch.export.Dim("batch", **bounds)


GOOD: dict[str, tuple[Callable[[], torch.nn.Module], tuple[Any, ...], Any, tuple[Any, ...]]] = {
    "lstm": (Tagger, (torch.zeros(4, 6, dtype=torch.long),), ({0: batch()},), (torch.randint(0, 20, (7, 6)),)),
    "shapes": (
        Shapes,
        (torch.ones(4, 4), torch.ones(1, 3, 8, 8)),
        ({0: batch(min=2, max=50) * 2}, {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}),
        (torch.randn(6, 4), torch.randn(1, 3, 10, 9)),
    ),
    "convolution": (Convolution, (torch.ones(2, 3, 9, 9),), ({0: batch()},), (torch.randn(5, 3, 9, 9),)),
    "static": (Convolution, (torch.ones(2, 3, 9, 9),), None, (torch.randn(2, 3, 9, 9),)),
}


@pytest.mark.parametrize("case", GOOD)
def test_sound_files_load_unchanged(case: str) -> None:
    build, example, shapes, inputs = GOOD[case]
    model = build().eval()
    original = torch.export.export(model, example, dynamic_shapes=shapes)
    torch.export.save(original, f"{case}.pt2")
    program = load_exported_program(f"{case}.pt2")
    plain = torch.export.load(f"{case}.pt2")
    torch.testing.assert_close(program.module()(*inputs), model(*inputs), rtol=0, atol=0)
    torch.testing.assert_close(program.module()(*inputs), plain.module()(*inputs), rtol=0, atol=0)
    assert program.graph_signature == plain.graph_signature
    assert str(program.graph) == str(plain.graph)
    assert program.range_constraints == plain.range_constraints
    for name, value in plain.state_dict.items():
        found = program.state_dict[name]
        assert torch.equal(found, value)
        assert (type(found), found.dtype, found.stride(), found.requires_grad) == (
            type(value),
            value.dtype,
            value.stride(),
            value.requires_grad,
        )


def test_tied_weights_stay_tied() -> None:
    build, example, shapes, _ = GOOD["lstm"]
    torch.export.save(torch.export.export(build().eval(), example, dynamic_shapes=shapes), "tied.pt2")
    state = load_exported_program("tied.pt2").state_dict
    assert state["embedding.weight"].data_ptr() == state["out.weight"].data_ptr()


def test_training_graph_keeps_its_gradients(good: Path) -> None:
    program = load_exported_program(good)
    program.module()(*INPUTS[0], **INPUTS[1]).sum().backward()
    assert program.state_dict["weight"].requires_grad
