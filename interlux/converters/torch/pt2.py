"""The gate in front of `.pt2` files (`torch.export.save`): reads one without running anything that the file holds.

`torch.export.load` executes what a file tells it to, in more ways than its documentation says: it unpickles sample
inputs, tensor subclasses and custom objects; it evaluates shape expressions with `sympy.sympify`; it puts names of
values, parameters and keyword arguments unescaped into Python source that it compiles; its tree specifications import
modules by name; it resolves operators by walking attributes from the `torch` module; it loads compiled libraries.

So torch never sees the file. The archive is read by our own bounded reader. The JSON is checked against the fields of
torch's serialisation schema, field by field: each text in it has a rule, and a text field without a rule (a newer
torch) is refused. What passed is written to a new JSON text. Weights are read from raw bytes into tensors after
checking that each view lies inside its bytes. Only these vetted pieces are given to torch's deserialiser.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import json
import keyword
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from interlux.converters.archive import Archive, ArchiveLimits, read_archive, shown
from interlux.ir.errors import InterluxError, InvalidModelError, ResourceLimitError, UnsafeInputError, UnsupportedError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pt2Limits:
    """Bounds on a `.pt2` file.

    Arguments:
        archive: bounds on the zip archive around it.
        max_json_bytes: size of one JSON member.
        max_depth: nesting of the graph's values (a sub-graph inside a sub-graph counts about ten).
        max_text: characters in one text.
        max_expression: characters in one shape expression.
        max_expression_nodes: syntax nodes in one shape expression.
        max_expression_depth: nesting of one shape expression.
        max_expanded_bytes: bytes by which a view with overlapping strides may exceed the bytes that hold it, so that
            copying it later does not use up the memory.
    """

    archive: ArchiveLimits = field(default_factory=ArchiveLimits)
    max_json_bytes: int = 128 << 20
    max_depth: int = 150
    max_text: int = 1 << 16
    max_expression: int = 1 << 14
    max_expression_nodes: int = 2000
    max_expression_depth: int = 60
    max_expanded_bytes: int = 256 << 20


# The archive's layout is a file format, not an API: the names are written out here rather than imported from torch.
_MODEL = "models/model.json"
_WEIGHTS, _CONSTANTS = "data/weights/", "data/constants/"
_WEIGHTS_CONFIG, _CONSTANTS_CONFIG = "model_weights_config.json", "model_constants_config.json"
_COMPILED = ("data/aotinductor/", "data/executorch/", "data/delegates/", "data/mtia/")
_LEGACY_PICKLES = (_WEIGHTS + "model.pt", _CONSTANTS + "model.pt")


def load_exported_program(
    path: str | os.PathLike[str], *, limits: Pt2Limits = Pt2Limits()
) -> torch.export.ExportedProgram:
    """Loads a `.pt2` file without running anything that it holds.

    Sample inputs, guard code, and the source annotations of nodes other than the module stack, the stack trace and the
    torch function are dropped. Weights are placed on the CPU, whatever device they were saved from.

    Arguments:
        path: a file written by `torch.export.save`.
        limits: see `Pt2Limits`.

    Returns:
        the exported program; its `example_inputs` are None.

    Raises:
        InvalidModelError: no such file, not a `.pt2` archive, damaged, or contradicting itself.
        UnsafeInputError: the file holds pickled objects, compiled code, an expression or a name that torch would
            execute, or a weight that reaches beyond its bytes.
        UnsupportedError: operators (all are listed), structures or a format version that are not known here.
        ResourceLimitError: a JSON member or a text is larger than its limit.
    """
    return load_with_guards(path, limits)[0]


def load_with_guards(
    path: str | os.PathLike[str], limits: Pt2Limits = Pt2Limits()
) -> tuple[torch.export.ExportedProgram, list[str]]:
    """As `load_exported_program`, and beside the program the code of its guards, which nothing has looked at."""
    with read_archive(path, limits=limits.archive, kind=".pt2 archive") as archive:
        root = _root(archive)
        _refuse_members(archive, root)
        loader = _Loader(archive, root, limits)
        return loader.load(), loader.guards


def _root(archive: Archive) -> str:
    """The folder that holds all members, with its slash, after checking what kind of archive this is."""
    names = list(archive)
    root = names[0].split("/", 1)[0] + "/" if names and "/" in names[0] else ""
    if "serialized_exported_program.json" in archive:
        raise UnsupportedError(
            f"{archive.path} is in the format of torch before 2.8; load it with that torch and save it again with "
            "torch.export.save of torch 2.8 or newer"
        )
    if root + _MODEL not in archive:
        if root + "data.pkl" in archive:
            raise InvalidModelError(
                f"{archive.path} is a pickle of torch.save or a TorchScript archive, not a .pt2 archive; save the "
                "model with torch.export.save(torch.export.export(model, inputs), path)"
            )
        raise InvalidModelError(
            f"{archive.path} is not a .pt2 archive (it has no member {_MODEL!r}); save it with torch.export.save"
        )
    if any(not name.startswith(root) for name in names):
        raise InvalidModelError(f"{archive.path} is not a sound .pt2 archive: its members lie in several folders")
    for name, expected in (("archive_format", b"pt2"), ("archive_version", b"0"), ("byteorder", b"little")):
        # Archives from before the byte order was recorded are little-endian.
        found = archive.read(root + name, max_bytes=64) if root + name in archive else None
        if found != expected and not (name == "byteorder" and found is None):
            raise UnsupportedError(f"{archive.path}: {name} is {shown(found)}; only {expected.decode()!r} is read")
    return root


def _refuse_members(archive: Archive, root: str) -> None:
    """Refuses members that torch would unpickle or load as compiled code."""
    for name in archive:
        inner = name.removeprefix(root)
        if inner.startswith(_COMPILED):
            raise UnsafeInputError(
                f"{archive.path}: member {shown(name)} is compiled code; save the exported program alone with "
                "torch.export.save"
            )
        if inner in _LEGACY_PICKLES:
            raise UnsafeInputError(
                f"{archive.path}: member {shown(name)} holds pickled weights, which can run code; save the model again "
                "with torch 2.9 or newer"
            )


class _Loader:
    """One load: reads and checks the archive's members and hands them to torch."""

    def __init__(self, archive: Archive, root: str, limits: Pt2Limits):
        # Everything that needs torch is imported here: `import interlux` stays fast.
        from torch._export.serde import schema

        self.archive = archive
        self.root = root
        self.limits = limits
        self.schema = schema
        self.guards: list[str] = []

    def load(self) -> torch.export.ExportedProgram:
        """The exported program. Raises as `load_exported_program`."""
        from torch._export.serde import serialize

        program = self._json(_MODEL)
        self._check_version(program)
        codes = program.get("guards_code", []) if isinstance(program, dict) else []
        self.guards = [code for code in codes if isinstance(code, str)] if isinstance(codes, list) else []
        program = _Checker(self.schema, self.limits, f"{self.archive.path}: {_MODEL}").check("ExportedProgram", program)
        weights, weight_shapes = self._tensors(_WEIGHTS, _WEIGHTS_CONFIG)
        constants, constant_shapes = self._tensors(_CONSTANTS, _CONSTANTS_CONFIG)
        self._check_inputs(program, weight_shapes, constant_shapes)
        # torch's deserialiser is called below the archive reader, with finished tensors in place of bytes to unpickle
        # and no sample inputs. The alternative, a rebuilt archive for torch.export.load, would copy all weights once
        # more, needs sample inputs to be pickled for it, and hides errors: load() logs a RuntimeError and goes on to
        # the old format. These two names are also what load() used for that old format, so they have changed little;
        # should one go, the call fails and nothing unchecked is read.
        artifact = serialize.SerializedArtifact(
            exported_program=json.dumps(program, allow_nan=False).encode(),
            state_dict=typing.cast(bytes, weights),
            constants=typing.cast(bytes, constants),
            example_inputs=b"",
        )
        try:
            return serialize.deserialize(artifact)
        except MemoryError:
            raise
        except Exception as error:
            # A graph that contradicts itself ends in whatever the deserialiser, FX, sympy or the verifier happen to
            # raise: KeyError, TypeError, AssertionError, SerializeError, SpecViolationError, ... Each means the same.
            raise InvalidModelError(
                f"{self.archive.path}: {_MODEL} is damaged or contradicts itself ({_reason(error)}); save it again"
            ) from error

    def _json(self, inner: str) -> Any:
        """One JSON member, parsed. Refuses duplicate keys and numbers that JSON does not have."""
        where = f"{self.archive.path}: {inner}"
        if self.root + inner not in self.archive:
            raise InvalidModelError(f"{self.archive.path} is not a sound .pt2 archive: it has no member {inner!r}")
        data = self.archive.read(self.root + inner, max_bytes=self.limits.max_json_bytes)

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            found = dict(pairs)
            if len(found) != len(pairs):
                raise ValueError("an object has one key twice")
            return found

        def refuse(constant: str) -> Any:
            raise ValueError(f"{constant} is no JSON number")

        try:
            return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
        except RecursionError as error:
            raise UnsafeInputError(f"{where} is nested too deeply") from error
        except ValueError as error:  # bad UTF-8, bad JSON, too long a number
            raise InvalidModelError(f"{where} is not valid JSON ({_reason(error)})") from error

    def _check_version(self, program: object) -> None:
        """Refuses a graph of another schema version; torch would try to read version 0.0 as its own."""
        version = program.get("schema_version") if isinstance(program, dict) else None
        major = version.get("major") if isinstance(version, dict) else None
        ours = self.schema.SCHEMA_VERSION[0]
        if type(major) is int and major != ours:
            writer = program.get("torch_version") if isinstance(program, dict) else None
            raise UnsupportedError(
                f"{self.archive.path} was written by torch {shown(writer)} with graph format {major}; this torch reads "
                f"{ours}: load it with that torch and save it with this one's format"
            )

    def _tensors(self, folder: str, config_name: str) -> tuple[dict[str, torch.Tensor], dict[str, _Shape]]:
        """The tensors that one configuration member describes, with their declared shapes, by name.

        Tensors that share bytes in the archive share memory here, so that tied weights stay tied.
        """
        import torch

        where = f"{self.archive.path}: {folder}{config_name}"
        checker = _Checker(self.schema, self.limits, where)
        config = checker.check("PayloadConfig", self._json(folder + config_name))["config"]
        bases: dict[str, torch.Tensor] = {}
        tensors: dict[str, torch.Tensor] = {}
        shapes: dict[str, _Shape] = {}
        for name, payload in config.items():
            stored_as = payload["path_name"]
            member = self.root + folder + stored_as
            # torch picks the unpickler for constants by the member's name, whatever `use_pickle` says.
            if payload["use_pickle"] or (folder == _CONSTANTS and not stored_as.startswith("tensor_")):
                raise UnsafeInputError(
                    f"{self.archive.path}: member {shown(member)} ({shown(name)}) is a pickled tensor or object, which "
                    "can run code; export the model with plain tensors only"
                )
            if member not in self.archive:
                raise InvalidModelError(f"{where} names the member {shown(member)}, which is not there")
            if payload.get("tensor_meta") is None:
                raise InvalidModelError(f"{where}: {shown(name)} has no shape and type")
            size = self.archive.members[member].size
            shape = _payload_shape(payload["tensor_meta"], size, self.limits, f"{where}: {shown(name)}")
            if member not in bases:
                bases[member] = torch.empty(size, dtype=torch.uint8)
                self.archive.read_into(member, bases[member].numpy().data)
            try:
                typed = bases[member].view(getattr(torch, shape.dtype))
                tensor = torch.as_strided(typed, shape.sizes, shape.strides, shape.offset)
                if shape.dtype == "bool" and bases[member].numel() and int(bases[member].max()) > 1:
                    raise InvalidModelError(f"{where}: {shown(name)} is boolean, but holds bytes other than 0 and 1")
                if payload["is_param"]:
                    tensor = torch.nn.Parameter(tensor, requires_grad=shape.requires_grad)
                else:
                    tensor.requires_grad_(shape.requires_grad)
            except RuntimeError as error:  # such as a gradient for integers
                raise InvalidModelError(f"{where}: {shown(name)} is not a valid tensor ({_reason(error)})") from error
            tensors[name] = tensor
            shapes[name] = shape
        return tensors, shapes

    def _check_inputs(self, program: Any, weights: Mapping[str, _Shape], constants: Mapping[str, _Shape]) -> None:
        """Compares the shape that the graph declares for each weight with the stored one; torch does not."""
        graph = program["graph_module"]["graph"]
        for value in graph["inputs"]:
            text = value.get("as_string")
            # module() puts texts that are inputs between quotes in its guard code when a caller sets sample inputs.
            if text is not None and not _KEY.fullmatch(text):
                raise UnsafeInputError(f"{self.archive.path}: {_MODEL} has the input {shown(text)}, not a plain text")
        values = graph["tensor_values"]
        for spec in program["graph_module"]["signature"]["input_specs"]:
            ((kind, entry),) = spec.items()
            key = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
            if kind not in key:
                continue
            name = entry[key[kind]]
            stored = constants.get(name) or weights.get(name) if kind != "parameter" else weights.get(name)
            if stored is None:
                raise InvalidModelError(
                    f"{self.archive.path}: {_MODEL} uses the {kind.replace('_', ' ')} {shown(name)}, which the archive "
                    "does not hold"
                )
            declared = values.get(entry["arg"]["name"])
            if declared is None:
                continue  # torch's deserialiser reports it
            sizes = tuple(size.get("as_int") for size in declared["sizes"])
            if sizes != stored.sizes or _DTYPES.get(declared["dtype"]) != stored.dtype:
                raise InvalidModelError(
                    f"{self.archive.path}: {_MODEL} and the stored weight {shown(name)} disagree on its shape or type: "
                    f"{shown(sizes)} {_DTYPES.get(declared['dtype'])} and {shown(stored.sizes)} {stored.dtype}"
                )


# Weights ------------------------------------------------------------------------------------------------------------

# The numbers of torch._export.serde.schema.ScalarType; part of the file format.
_DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip
_ITEM_SIZES = {"int16": 2, "float16": 2, "bfloat16": 2, "uint16": 2, "int32": 4, "float32": 4, "uint32": 4}
_ITEM_SIZES |= {"complex32": 4, "int64": 8, "uint64": 8, "float64": 8, "complex64": 8, "complex128": 16}
_STRIDED = 7


@dataclass(frozen=True)
class _Shape:
    """A stored tensor's declared type and place in its bytes, counted in items."""

    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    requires_grad: bool


def _payload_shape(meta: Any, stored_bytes: int, limits: Pt2Limits, where: str) -> _Shape:
    """The checked form of a weight's `tensor_meta`.

    Arguments:
        meta: checked JSON of a TensorMeta.
        stored_bytes: bytes that hold it.
        limits: for views that overlap themselves.
        where: for messages.

    Returns:
        a shape all of whose items lie inside the bytes.

    Raises:
        InvalidModelError: not a dense tensor of known type and fixed shape, or its bytes are missing.
        UnsafeInputError: it reaches beyond its bytes, or expands without bound.
    """
    dtype = _DTYPES.get(meta["dtype"])
    if dtype is None or meta["layout"] != _STRIDED:
        raise InvalidModelError(f"{where} has an unknown element type or is not a dense tensor")
    numbers = [value.get("as_int") for value in (*meta["sizes"], *meta["strides"], meta["storage_offset"])]
    rank = len(meta["sizes"])
    if None in numbers or len(meta["strides"]) != rank or rank > 64:
        raise InvalidModelError(f"{where} has no fixed shape")
    if min(numbers) < 0:
        raise UnsafeInputError(f"{where} has a negative size, stride or offset")
    sizes, strides, offset = tuple(numbers[:rank]), tuple(numbers[rank:-1]), numbers[-1]
    item = _ITEM_SIZES.get(dtype, 1)
    count = math.prod(sizes)
    if stored_bytes % item:
        raise InvalidModelError(f"{where}: {stored_bytes} bytes are stored, not a multiple of {item} for {dtype}")
    if count and not stored_bytes:
        raise InvalidModelError(
            f"{where} has no stored data (exported from fake tensors?); export it with real weights"
        )
    last = (
        offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) if count else offset - 1
    )
    if (last + 1) * item > stored_bytes:
        raise UnsafeInputError(
            f"{where} with shape {shown(sizes)}, strides {shown(strides)} and offset {shown(offset)} reaches beyond "
            f"its {stored_bytes} stored bytes"
        )
    if count * item > stored_bytes + limits.max_expanded_bytes:
        raise UnsafeInputError(
            f"{where} with shape {shown(sizes)} would expand from {stored_bytes} bytes without bound"
        )
    return _Shape(dtype, sizes, strides, offset, meta["requires_grad"])


def _reason(error: BaseException) -> str:
    """An exception from below in one short line: the first cause's type and the start of its text."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return type(error).__name__ + (": " + shown(text, 160)[1:-1] if text else "")


# Expressions --------------------------------------------------------------------------------------------------------

# Symbols are torch's own: a fixed prefix (size, unbacked, float, unbacked float) and a number. Unbacked numbers stay
# short because the deserialiser counts up to the largest one.
_SYMBOL = re.compile(r"(?:s|zf)\d{1,12}|(?:u|zuf)\d{1,5}", re.ASCII)
_EXPRESSION_CHARACTERS = re.compile(r"[A-Za-z0-9_ ()',.+\-*/%<>=!&|~]*", re.ASCII)
_FLOAT = re.compile(r"-?\d{1,40}(?:\.\d{1,60})?(?:e[+-]?\d{1,3})?", re.ASCII)
_CONSTANTS_BY_NAME = frozenset({"oo", "int_oo", "true", "false", "True", "False", "pi"})
_ASSUMPTIONS = frozenset(
    {"integer", "positive", "negative", "nonnegative", "nonpositive", "real", "nonzero", "zero", "finite", "infinite",
     "rational", "extended_real", "commutative", "even", "odd", "size"}
)  # fmt: skip
# sympy's constructors as srepr prints them, then what torch adds (torch.utils._sympy.functions).
_FUNCTIONS = frozenset(
    {"Add", "Mul", "Max", "Min", "Mod", "Abs", "floor", "ceiling", "And", "Or", "Not", "ITE", "Piecewise",
     "ExprCondPair", "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan",
     "Eq", "Ne", "Lt", "Le", "Gt", "Ge",
     "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv",
     "IntTrueDiv", "FloatTrueDiv", "IsNonOverlappingAndDenseIndicator", "TruncToFloat", "TruncToInt", "RoundToInt",
     "ToFloat", "Identity"}
    | {"OpaqueUnaryFn_" + name for name in (
        "sqrt", "cos", "cosh", "sin", "sinh", "tan", "tanh", "asin", "acos", "atan", "exp", "log", "log2", "asinh")}
)  # fmt: skip
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift", "RShift", "RoundDecimal"})
_MAX_BITS, _MAX_TERMS, _MAX_EXPONENT, _MAX_ARGUMENTS = 4096, 10_000, 64, 64


@dataclass(frozen=True)
class _Cost:
    """Bounds on a part of an expression: bits of its value, with 64 for a symbol, and its terms once expanded."""

    bits: int
    terms: int


class _ExpressionError(ValueError):
    """Why an expression was refused."""


class _Expression:
    """Checks one shape expression against a closed grammar and writes it anew.

    sympy evaluates the text with `eval`, and evaluates texts inside it again. What torch gets is printed from the
    checked syntax tree, so no difference between Python's parser and sympy's tokeniser is left to exploit. Numbers and
    powers are bounded, because sympy computes them at once: 9**9**9 would never end.
    """

    def __init__(self, limits: Pt2Limits):
        self.limits = limits
        self.nodes = 0

    def rewrite(self, text: str) -> str:
        """The expression in canonical form.

        Arguments:
            text: what the file holds.

        Returns:
            Python source of the same expression.

        Raises:
            _ExpressionError: it is not in the grammar, or beyond the limits.
        """
        if len(text) > self.limits.max_expression:
            raise _ExpressionError(f"has more than {self.limits.max_expression} characters")
        if not _EXPRESSION_CHARACTERS.fullmatch(text):
            raise _ExpressionError("has characters that no shape expression has")
        try:
            tree = ast.parse(text.strip(), mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # the last two: nesting, in CPython
            raise _ExpressionError("is not an expression") from error
        self._cost(tree.body, 0)
        return ast.unparse(tree)

    def _cost(self, node: ast.expr, depth: int) -> _Cost:
        self.nodes += 1
        if self.nodes > self.limits.max_expression_nodes or depth > self.limits.max_expression_depth:
            raise _ExpressionError("is too large or nested too deeply")
        cost = self._node(node, depth + 1)
        if cost.bits > _MAX_BITS or cost.terms > _MAX_TERMS:
            raise _ExpressionError("would grow too large when it is evaluated")
        return cost

    def _node(self, node: ast.expr, depth: int) -> _Cost:
        match node:
            case ast.Constant(value=bool()):
                return _Cost(1, 1)
            case ast.Constant(value=int(value)) if abs(value) < 1 << 63:
                return _Cost(value.bit_length(), 1)
            case ast.Constant(value=float(number)) if math.isfinite(number):
                return _Cost(1100, 1)
            case ast.Name(id=name) if name in _CONSTANTS_BY_NAME or _SYMBOL.fullmatch(name):
                return _Cost(64, 1)
            case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Invert(), operand=operand):
                return self._cost(operand, depth)
            case ast.BinOp(left=left, op=ast.Pow(), right=right):
                return self._power(left, right, depth)
            case ast.BinOp(left=left, op=operator, right=right):
                if isinstance(operator, ast.Mult):
                    return self._product([left, right], depth)
                if isinstance(operator, ast.Add | ast.Sub | ast.Div | ast.FloorDiv | ast.Mod | ast.BitAnd | ast.BitOr):
                    return self._sum([left, right], depth)
            case ast.Compare(left=left, ops=[_], comparators=[right]):
                return self._sum([left, right], depth)
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=options):
                return self._call(name, arguments, options, depth)
        raise _ExpressionError("is not made of symbols, numbers and known functions")

    def _sum(self, parts: list[ast.expr], depth: int) -> _Cost:
        costs = [self._cost(part, depth) for part in parts]
        return _Cost(max((cost.bits for cost in costs), default=1) + len(costs), sum(cost.terms for cost in costs))

    def _product(self, parts: list[ast.expr], depth: int) -> _Cost:
        costs = [self._cost(part, depth) for part in parts]
        return _Cost(sum(cost.bits for cost in costs), math.prod(cost.terms for cost in costs))

    def _power(self, base: ast.expr, exponent: ast.expr, depth: int) -> _Cost:
        cost = self._cost(base, depth)
        power = self._integer(exponent)
        if power is None:
            # A symbol as exponent stays symbolic; anything else might be computed to a huge number.
            symbol = isinstance(exponent, ast.Name) and _SYMBOL.fullmatch(exponent.id)
            if not symbol and not self._is_symbol_call(exponent):
                raise _ExpressionError("has an exponent or shift that is neither a small number nor a symbol")
            self._cost(exponent, depth)
            return _Cost(cost.bits + 64, cost.terms)
        if abs(power) > _MAX_EXPONENT:
            raise _ExpressionError(f"has an exponent or shift above {_MAX_EXPONENT}")
        return _Cost(cost.bits * max(abs(power), 1) + abs(power), min(cost.terms ** max(abs(power), 1), _MAX_TERMS + 1))

    def _integer(self, node: ast.expr) -> int | None:
        """The number that a node spells, also as `-1` and `Integer(-1)`."""
        match node:
            case ast.Constant(value=int(value)) if not isinstance(value, bool):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))) if not isinstance(value, bool):
                return -value
            case ast.Call(func=ast.Name(id="Integer"), args=[argument], keywords=[]):
                return self._integer(argument) if not isinstance(argument, ast.Call) else None
        return None

    def _is_symbol_call(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Symbol"

    def _call(self, name: str, arguments: list[ast.expr], options: list[ast.keyword], depth: int) -> _Cost:
        if len(arguments) > _MAX_ARGUMENTS:
            raise _ExpressionError(f"calls a function with more than {_MAX_ARGUMENTS} arguments")
        match name, arguments:
            # Texts are allowed in these two places only: sympy evaluates a text anywhere else.
            case "Symbol", [ast.Constant(value=str(symbol))] if _SYMBOL.fullmatch(symbol):
                self._check_options(options, _ASSUMPTIONS)
                return _Cost(64, 1)
            case "Float", [ast.Constant(value=str(number))] if _FLOAT.fullmatch(number):
                for option in options:
                    precision = self._integer(option.value)
                    if option.arg != "precision" or precision is None or not 1 <= precision <= 128:
                        raise _ExpressionError("has a number of unknown precision")
                return _Cost(1100, 1)
            case "Integer", [number] if not options and (value := self._integer(number)) is not None:
                if abs(value) >= 1 << 63:
                    raise _ExpressionError("has a number beyond 64 bits")
                return _Cost(value.bit_length(), 1)
            case "Rational", [over, under] if not options and self._integer(over) is not None:
                if not self._integer(under):
                    raise _ExpressionError("has a fraction without a denominator")
                return self._sum([over, under], depth)
        if options:
            raise _ExpressionError("passes an option to a function that has none")
        if name in _POWERS and len(arguments) == 2:
            return self._power(arguments[0], arguments[1], depth)
        if name == "Pow" or name not in _FUNCTIONS:
            raise _ExpressionError("calls something that is not a known function of shapes")
        if name == "Mul":
            return self._product(arguments, depth)
        cost = self._sum(arguments, depth)
        # Only sums are taken apart when torch expands an expression; any other function is one term in it.
        return cost if name == "Add" else _Cost(cost.bits, 1)

    def _check_options(self, options: list[ast.keyword], known: frozenset[str]) -> None:
        for option in options:
            if (
                option.arg not in known
                or not isinstance(option.value, ast.Constant)
                or type(option.value.value) is not bool
            ):
                raise _ExpressionError("passes an unknown option to a symbol")


# Operators ----------------------------------------------------------------------------------------------------------

# What torch's serialiser writes for arithmetic on sizes (torch._export.serde.serialize._SYM_OPS).
_PLAIN_TARGETS = frozenset(
    ["_operator." + name for name in (
        "eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "mul", "add", "sub", "floordiv", "mod", "pow", "truediv",
        "and_", "or_", "lshift", "rshift", "getitem")]
    + ["math.trunc"]
    + ["torch.sym_" + name for name in ("not", "int", "float", "ite", "max", "min", "sqrt", "sum")]
)  # fmt: skip
_OP = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)", re.ASCII)
_HIGHER_ORDER = re.compile(r"torch\.ops\.higher_order\.(\w+)", re.ASCII)
_NAMESPACES = frozenset({"aten", "prims", "torchvision", "quantized_decomposed"})
# Higher-order operators whose graphs are part of the file and checked like the rest. Left out: those that call compiled
# code, script objects, or Python functions by name.
_HIGHER_ORDER_NAMES = frozenset(
    {"cond", "while_loop", "scan", "associative_scan", "map_impl", "wrap_with_set_grad_enabled", "wrap_with_autocast",
     "auto_functionalized", "auto_functionalized_v2", "flex_attention", "invoke_subgraph", "strict_mode", "out_dtype",
     "hints_wrapper"}
)  # fmt: skip
# Operators that reach outside the process: from_file maps (and with shared=True creates and writes) any file.
_REFUSED_OPS = frozenset({"from_file", "_print"})
# Python's own attributes also have this form; only the operators of aten are meant.
_DUNDER_OPS = frozenset(
    f"__{prefix}{name}__" for prefix in ("", "i") for name in ("and", "or", "xor", "lshift", "rshift")
)


def _is_known_operator(target: str) -> bool:
    """Whether a target names an operator that may be resolved, and exists in this process.

    The text is judged before any attribute is looked up; afterwards the object found must be an operator.
    """
    if target in _PLAIN_TARGETS:
        return True
    import torch

    if match := _HIGHER_ORDER.fullmatch(target):
        name = match[1]
        found = getattr(torch.ops.higher_order, name, None) if name in _HIGHER_ORDER_NAMES else None
        return isinstance(found, torch._ops.HigherOrderOperator)
    match = _OP.fullmatch(target)
    if match is None or match[1] not in _NAMESPACES or match[2] in _REFUSED_OPS:
        return False
    if any(part.startswith("__") and part not in _DUNDER_OPS for part in match.groups()):
        return False
    found = getattr(getattr(getattr(torch.ops, match[1]), match[2], None), match[3], None)
    return isinstance(found, torch._ops.OpOverload) and found.namespace == match[1]


# The graph's JSON ---------------------------------------------------------------------------------------------------

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,511}", re.ASCII)
# Parameter and module names end up between double quotes in generated source.
_QUALIFIED_NAME = re.compile(r"[\w.@/:+ -]{0,1024}")
_KEY = re.compile(r"[\w.@/:+ -]{0,256}")
_VERSION = re.compile(r"[\w.+<=>-]{0,64}", re.ASCII)
_MEMBER = re.compile(r"[A-Za-z0-9_]{1,128}", re.ASCII)
_DEVICES = frozenset({"cpu", "cuda", "mps", "xpu", "meta"})
_DIALECTS = frozenset({"", "ATEN", "TRAINING"})
_KEPT_METADATA = frozenset({"stack_trace", "nn_module_stack", "torch_fn"})
_TREE_TYPES = frozenset({"builtins.tuple", "builtins.list", "torch.fx.immutable_collections.immutable_list"})
_TREE_DICTS = frozenset({"builtins.dict", "collections.OrderedDict", "torch.fx.immutable_collections.immutable_dict"})
_INFINITE = frozenset({"Infinity", "-Infinity", "NaN"})


class _Checker:
    """Checks JSON against torch's schema classes and returns a copy that holds only what was checked.

    Types come from the schema's own annotations, so that a new numeric field needs no change here. Texts are what can
    be executed: each (class, field) with texts has a rule in `_rules`, and one without a rule is refused.
    """

    def __init__(self, schema: types.ModuleType, limits: Pt2Limits, source: str):
        self.schema = schema
        self.limits = limits
        self.source = source
        self._path: list[str | int] = []
        self._hints: dict[type, dict[str, Any]] = {}
        self._expressions: dict[str, str] = {}
        self._operators: dict[str, bool] = {}
        self._unknown_operators: dict[str, None] = {}
        name, fqn, text = self._identifier, self._qualified_name, self._text
        # A rule for a field with a dict applies to its keys.
        self._rules: dict[tuple[str, str], Callable[[str], str]] = {
            ("ExportedProgram", "opset_version"): self._match(_KEY),
            ("ExportedProgram", "range_constraints"): self._range_key,
            ("ExportedProgram", "verifiers"): self._dialect,
            ("ExportedProgram", "torch_version"): self._match(_VERSION),
            ("Graph", "tensor_values"): name,
            ("Graph", "sym_int_values"): name,
            ("Graph", "sym_float_values"): name,
            ("Graph", "sym_bool_values"): name,
            ("Graph", "custom_obj_values"): self._no_object,
            ("Node", "target"): self._operator,
            ("Node", "name"): name,
            ("NamedArgument", "name"): self._argument_name,
            ("TensorArgument", "name"): name,
            ("TokenArgument", "name"): name,
            ("GraphArgument", "name"): name,
            ("CustomObjArgument", "name"): self._no_object,
            ("SymIntArgument", "as_name"): name,
            ("SymFloatArgument", "as_name"): name,
            ("SymBoolArgument", "as_name"): name,
            ("Argument", "as_string"): text,
            ("Argument", "as_strings"): text,
            ("Argument", "as_operator"): self._operator,
            ("Argument", "as_string_to_argument"): text,
            ("Device", "type"): self._device,
            ("SymExpr", "expr_str"): self._expression,
            ("ConstantValue", "as_string"): self._match(_KEY),
            ("InputToConstantInputSpec", "name"): name,
            ("InputToParameterSpec", "parameter_name"): fqn,
            ("InputToBufferSpec", "buffer_name"): fqn,
            ("InputToTensorConstantSpec", "tensor_constant_name"): fqn,
            ("InputToCustomObjSpec", "custom_obj_name"): self._no_object,
            ("BufferMutationSpec", "buffer_name"): fqn,
            ("ParameterMutationSpec", "parameter_name"): fqn,
            ("GradientToParameterSpec", "parameter_name"): fqn,
            ("GradientToUserInputSpec", "user_input_name"): name,
            ("UserInputMutationSpec", "user_input_name"): name,
            ("ModuleCallEntry", "fqn"): fqn,
            ("ModuleCallSignature", "in_spec"): self._tree_spec,
            ("ModuleCallSignature", "out_spec"): self._tree_spec,
            ("ModuleCallSignature", "forward_arg_names"): name,
            ("PayloadConfig", "config"): fqn,
            ("PayloadMeta", "path_name"): self._match(_MEMBER),
        }
        # Texts that nothing here needs and that torch would evaluate, import or resolve. Guards are compiled to a
        # function by ExportedProgram.module() when there are sample inputs; the ranges of sizes are kept elsewhere.
        self._dropped: dict[tuple[str, str], Any] = {
            ("ExportedProgram", "guards_code"): [],
            ("GraphModule", "metadata"): {},
            ("GraphModule", "treespec_namedtuple_fields"): {},
        }

    def check(self, class_name: str, data: object) -> Any:
        """A checked copy of some JSON.

        Arguments:
            class_name: the schema class that it must be.
            data: parsed JSON.

        Returns:
            JSON of the same form.

        Raises:
            InvalidModelError, UnsafeInputError, UnsupportedError, ResourceLimitError: naming the field.
        """
        checked = self._value(getattr(self.schema, class_name), data, None, 0)
        if self._unknown_operators:
            raise UnsupportedError(
                f"{self.source} uses operators that are not loaded from files (custom operators must be decomposed "
                "before torch.export.save)",
                sorted(self._unknown_operators),
            )
        return checked

    def _fail(self, kind: type[InterluxError], message: str) -> typing.NoReturn:
        steps = (f".{step}" if _IDENTIFIER.fullmatch(str(step)) else f"[{shown(step, 60)}]" for step in self._path)
        place = "".join(steps).removeprefix(".")
        if len(place) > 300:
            place = place[:120] + "..." + place[-160:]
        raise kind(f"{self.source}: {place or 'the top'} {message}")

    def _value(self, expected: Any, data: object, rule: Callable[[str], str] | None, depth: int) -> Any:
        """A checked copy of one value of an annotated type; `rule` judges texts."""
        if depth > self.limits.max_depth:
            self._fail(UnsafeInputError, "is nested too deeply")
        if isinstance(expected, str):
            expected = getattr(self.schema, expected)
        origin = typing.get_origin(expected)
        if origin in (typing.Union, types.UnionType):
            if data is None:
                return None
            expected = next(kind for kind in typing.get_args(expected) if kind is not type(None))
            origin = typing.get_origin(expected)
        if dataclasses.is_dataclass(expected) and isinstance(expected, type):
            return self._record(expected, data, depth)
        if origin is list:
            return self._list(typing.get_args(expected)[0], data, rule, depth)
        if origin is dict:
            return self._dict(typing.get_args(expected)[1], data, rule, depth)
        return self._scalar(expected, data, rule)

    def _scalar(self, expected: Any, data: object, rule: Callable[[str], str] | None) -> Any:
        # Types are compared exactly: True is an int to isinstance.
        if expected is str:
            if type(data) is not str:
                self._fail(InvalidModelError, f"is {shown(data)}, not a text")
            if rule is None:
                self._fail(UnsupportedError, f"is not known here (written by a newer torch?): {shown(data)}")
            return rule(data)
        if expected is bool and type(data) is bool:
            return data
        if expected is float and (type(data) in (int, float) or (type(data) is str and data in _INFINITE)):
            # Out of range numbers such as 1e999 parse to infinity, which the schema spells as a text.
            if type(data) is not str and not abs(typing.cast(float, data)) < 1e300:
                self._fail(InvalidModelError, "is too large a number")
            return data
        if type(data) is int and -(1 << 63) <= data < 1 << 63:
            if expected is int:
                return data
            if isinstance(expected, type) and issubclass(expected, enum.IntEnum) and data in list(expected):
                return data
        self._fail(InvalidModelError, f"is {shown(data)}, not a valid {getattr(expected, '__name__', 'value')}")

    def _list(self, item: Any, data: object, rule: Callable[[str], str] | None, depth: int) -> list[Any]:
        if type(data) is not list:
            self._fail(InvalidModelError, f"is {shown(data)}, not a list")
        result = []
        for index, value in enumerate(data):
            self._path.append(index)
            result.append(self._value(item, value, rule, depth + 1))
            self._path.pop()
        return result

    def _dict(self, item: Any, data: object, rule: Callable[[str], str] | None, depth: int) -> dict[str, Any]:
        if type(data) is not dict:
            self._fail(InvalidModelError, f"is {shown(data)}, not an object")
        result = {}
        for key, value in data.items():
            self._path.append(key)
            if rule is None:
                self._fail(UnsupportedError, "is not known here (written by a newer torch?)")
            rule(key)
            result[key] = self._value(item, value, None, depth + 1)
            self._path.pop()
        return result

    def _record(self, cls: type, data: object, depth: int) -> dict[str, Any]:
        if type(data) is not dict:
            self._fail(InvalidModelError, f"is {shown(data)}, not an object")
        if cls.__name__ == "CustomObjArgument":
            self._no_object("")
        hints = self._hints.get(cls)
        if hints is None:
            hints = self._hints[cls] = typing.get_type_hints(cls, globalns=vars(self.schema))
        is_union = hasattr(cls, "create")  # the schema's unions are written as an object with one of the fields
        if is_union and (len(data) != 1 or next(iter(data)) not in hints):
            self._fail(InvalidModelError, f"has the alternatives {shown(list(data))}, not one known one")
        result: dict[str, Any] = {}
        for entry in dataclasses.fields(cls):
            name = entry.name
            if name not in data:
                no_default = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
                if no_default and not is_union:
                    self._fail(InvalidModelError, f"has no {name!r}")
                continue
            key = (cls.__name__, name)
            if key in self._dropped:
                result[name] = self._dropped[key]
                continue
            self._path.append(name)
            if key == ("Node", "metadata"):
                result[name] = self._metadata(data[name])
            else:
                result[name] = self._value(hints[name], data[name], self._rules.get(key), depth + 1)
            self._path.pop()
        return result  # fields that this torch does not know are left out, as torch does

    def _metadata(self, data: object) -> dict[str, str]:
        """A node's annotations that are only ever shown; the others are resolved to objects or parsed again."""
        if type(data) is not dict:
            self._fail(InvalidModelError, f"is {shown(data)}, not an object")
        kept = {
            key: value
            for key, value in data.items()
            if key in _KEPT_METADATA and type(value) is str and 0 < len(value) <= self.limits.max_text
        }
        stack = kept.get("nn_module_stack", "")
        if any(not _splits_in_three(part) for part in stack.split(";")):
            kept.pop("nn_module_stack", None)
        return kept

    # Rules for texts: each returns the text to write, or raises.

    def _match(self, pattern: re.Pattern[str]) -> Callable[[str], str]:
        def rule(value: str) -> str:
            if not pattern.fullmatch(value):
                self._fail(UnsafeInputError, f"is {shown(value)}, which has characters that are not expected there")
            return value

        return rule

    def _text(self, value: str) -> str:
        if len(value) > self.limits.max_text:
            self._fail(
                ResourceLimitError, f"has {len(value)} characters, more than the limit of {self.limits.max_text}"
            )
        return value

    def _identifier(self, value: str) -> str:
        # torch writes these names into Python source without a check.
        if not _IDENTIFIER.fullmatch(value) or keyword.iskeyword(value):
            self._fail(UnsafeInputError, f"is {shown(value)}, which is not a plain name")
        return value

    def _argument_name(self, value: str) -> str:
        # Arguments without a schema have no name; one of aten's is called "from".
        return value if value in ("", "from") else self._identifier(value)

    def _qualified_name(self, value: str) -> str:
        parts = value.split(".")
        if not _QUALIFIED_NAME.fullmatch(value) or any(part.startswith("__") for part in parts):
            self._fail(UnsafeInputError, f"is {shown(value)}, which is not a plain name of a module or weight")
        return value

    def _expression(self, value: str) -> str:
        known = self._expressions.get(value)
        if known is None:
            try:
                known = self._expressions[value] = _Expression(self.limits).rewrite(value)
            except _ExpressionError as error:
                self._fail(UnsafeInputError, f"is the expression {shown(value, 100)}, which {error}")
        return known

    def _range_key(self, value: str) -> str:
        self._expression(value)
        # Keys are compared, not evaluated, and must stay as written. The deserialiser takes a number from those that
        # begin with an unbacked symbol's letter and counts up to it.
        if value.startswith(("u", "zuf")) and not _SYMBOL.fullmatch(value):
            self._fail(InvalidModelError, f"is {shown(value)}, not a symbol")
        return value

    def _operator(self, value: str) -> str:
        if value not in self._operators:
            self._operators[value] = len(value) <= 256 and _is_known_operator(value)
        if not self._operators[value]:
            self._unknown_operators[shown(value)[1:-1]] = None
        return value

    def _device(self, value: str) -> str:
        if value not in _DEVICES:
            self._fail(UnsupportedError, f"is the device {shown(value)}; known are {', '.join(sorted(_DEVICES))}")
        return value

    def _dialect(self, value: str) -> str:
        if value not in _DIALECTS:
            self._fail(UnsupportedError, f"is the dialect {shown(value)}; only programs of torch.export are read")
        return value

    def _no_object(self, value: str) -> str:
        self._fail(UnsafeInputError, "is a custom object, which is stored as a pickle; export a model of tensors only")

    def _tree_spec(self, value: str) -> str:
        """The structure of inputs or outputs; torch imports what it names."""
        if len(value) > self.limits.max_json_bytes // 16:
            self._fail(ResourceLimitError, f"has {len(value)} characters")
        try:
            spec = json.loads(value)
        except RecursionError:
            self._fail(UnsafeInputError, "is nested too deeply")
        except ValueError as error:
            self._fail(InvalidModelError, f"is not a tree specification ({_reason(error)})")
        if type(spec) is not list or len(spec) != 2 or spec[0] != 1 or type(spec[0]) is not int:
            self._fail(InvalidModelError, f"is not a tree specification of version 1: {shown(value)}")
        tree = self._tree(spec[1], 0)
        # Keys of keyword arguments go into generated source as names.
        children = tree["children_spec"]
        if tree["type"] == "builtins.tuple" and len(children) == 2 and children[1]["type"] == "builtins.dict":
            for key in json.loads(children[1]["context"]):
                self._identifier(key) if type(key) is str else self._fail(
                    InvalidModelError, "has a keyword that is no text"
                )
        return json.dumps([1, tree])

    def _tree(self, node: Any, depth: int) -> dict[str, Any]:
        if depth > self.limits.max_depth:
            self._fail(UnsafeInputError, "is nested too deeply")
        if type(node) is not dict or type(node.get("children_spec")) is not list:
            self._fail(InvalidModelError, f"holds {shown(node)}, not a part of a tree specification")
        kind, context = node.get("type"), node.get("context")
        if type(kind) not in (str, types.NoneType):
            self._fail(InvalidModelError, f"holds the type {shown(kind)}, not a part of a tree specification")
        children = [self._tree(child, depth + 1) for child in node["children_spec"]]
        if kind is None and context is None and not children:
            return {"type": None, "context": None, "children_spec": []}
        if kind in _TREE_TYPES and context == "null":
            return {"type": kind, "context": context, "children_spec": children}
        if kind in _TREE_DICTS and type(context) is str:
            return {"type": kind, "context": self._keys(context, len(children)), "children_spec": children}
        self._fail(
            UnsupportedError,
            f"has inputs or outputs of the type {shown(kind)}; export with tuples, lists and dicts",
        )

    def _keys(self, context: str, count: int) -> str:
        """A dict's keys. torch would import what an object in them names, so only plain keys pass."""
        try:
            keys = json.loads(context)
        except (ValueError, RecursionError) as error:
            self._fail(InvalidModelError, f"has a dict whose keys cannot be read ({_reason(error)})")
        if type(keys) is not list or len(keys) != count:
            self._fail(InvalidModelError, f"has a dict with the keys {shown(context)} and {count} values")
        for key in keys:
            if type(key) not in (int, bool, str) or (type(key) is str and not _KEY.fullmatch(key)):
                self._fail(
                    UnsafeInputError, f"has a dict with the key {shown(key)}, which is not a plain text or number"
                )
        return json.dumps(keys)


def _splits_in_three(text: str) -> bool:
    """Whether one level of a module stack is what torch expects: three parts between commas outside brackets."""
    depth = commas = 0
    for letter in text:
        depth += (letter in "[(") - (letter in ")]")
        commas += letter == "," and depth == 0
    return commas == 2
