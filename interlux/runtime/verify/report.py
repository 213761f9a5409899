"""The report of a verification: for programs (JSON), terminals and browsers."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata, resources
from typing import Any

from ...ir import trees
from ...ir.errors import UnsupportedError, VerificationError
from ...ir.model import Model
from ...ir.text import escaped
from .compare import LIMIT

_PACKAGES = ("interlux", "numpy", "torch", "keras", "onnx", "onnxruntime", "jax", "jaxlib")
_BAR_LIMITS = (1e-1, 1e5)  # ratios at the two ends of the bars
_TICKS = (("0.1", 0.1), ("1", 1.0), ("10", 10.0), ("10²", 1e2), ("10⁴", 1e4))

CRITERION = (
    "Every output is compared with the source computed in float64. Its relative error (RMS) is divided by the error "
    "that the source itself makes in its own dtype; a conversion without loss gives about 1. Passed means: at most "
    f"{LIMIT:g}, for the output as a whole, for every row of it and for every channel, on every test input. Numbers, "
    "shapes and dtypes of outputs, the places of NaN and infinity, and all integer and boolean values must be equal."
)


@dataclass(frozen=True)
class Row:
    """One output on one backend. Numbers are NaN where they do not apply (exact comparison, failure to run).

    Arguments:
        output: its name; empty if the backend failed as a whole.
        ratio: the target's error over the source's own, on the worst probe.
        slice_ratio, slice_name: the same for the worst row or channel.
        source_error, target_error: both relative to the output's size, on the worst probe.
        probe: the worst probe.
        reason: why it did not pass; empty if it did.
        top1: how often the largest value along the last axis is at the same place as the source's, 0 to 1.
        kl: mean Kullback-Leibler divergence of softmax along the last axis, in nats.
    """

    backend: str
    output: str
    passed: bool
    ratio: float = math.nan
    slice_ratio: float = math.nan
    slice_name: str = ""
    source_error: float = math.nan
    target_error: float = math.nan
    probe: str = ""
    reason: str = ""
    top1: float = math.nan
    kl: float = math.nan

    @property
    def worst(self) -> float:
        """The larger of both ratios, NaN if there is none."""
        return max((r for r in (self.ratio, self.slice_ratio) if not math.isnan(r)), default=math.nan)


@dataclass(frozen=True)
class Report:
    """What a verification found.

    Arguments:
        passed: whether every row did.
        rows: one for each backend and output.
        notes: what a reader should know, one sentence each.
        source: what the model was compared with, in one line.
        model: name, source, counts and sizes of the model.
        probes: names of the inputs that were used.
        environment: versions of what took part.
        tree: the model as text.
    """

    passed: bool
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    source: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)
    probes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    tree: str = ""

    @property
    def worst(self) -> Row | None:
        """The row that failed hardest, else the one with the largest ratio."""
        if not self.rows:
            return None

        def order(row: Row) -> tuple[bool, bool, float]:
            return not row.passed, math.isnan(row.worst), 0.0 if math.isnan(row.worst) else row.worst

        return max(self.rows, key=order)

    def raise_if_failed(self) -> None:
        """Raises VerificationError, with one line that names the worst output, unless the verification passed."""
        if self.passed:
            return
        row = self.worst
        if row is None:
            raise VerificationError("verification failed: nothing was compared")
        what = f"output {row.output!r} on {row.backend}" if row.output else row.backend
        where = f" (inputs: {row.probe})" if row.probe else ""
        failed = sum(not r.passed for r in self.rows)
        more = f"; {failed} of {len(self.rows)} comparisons failed" if len(self.rows) > 1 else ""
        advice = "; don't use this conversion" if row.ratio > LIMIT or row.slice_ratio > LIMIT else ""
        raise VerificationError(escaped(f"verification failed: {what}: {row.reason}{where}{more}{advice}"))

    def inputs_tried(self) -> str:
        return f"{len(self.probes)} input" + ("" if len(self.probes) == 1 else "s")

    def to_dict(self) -> dict[str, Any]:
        """All of the report in JSON's types; numbers that are not finite are None."""
        result: dict[str, Any] = _plain(asdict(self))
        return {**result, "limit": LIMIT, "criterion": CRITERION}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)

    def to_html(
        self,
        path: str | os.PathLike[str] | None = None,
        extra_sections: Sequence[tuple[str, Sequence[Sequence[Any]]]] = (),
    ) -> str:
        """The report as one self-contained HTML page.

        Arguments:
            path: where the page is written, None to only return it.
            extra_sections: (title, table) pairs that follow the comparison; the first row of a table is its head. A
                cell of type markupsafe.Markup is taken as HTML, any other is escaped.

        Returns:
            The page.

        Raises UnsupportedError if jinja2 is not installed.
        """
        try:
            import jinja2
        except ImportError:
            raise UnsupportedError("an HTML report needs jinja2: pip install 'interlux[report]'") from None
        text = resources.files(__package__).joinpath("report.html.j2").read_text(encoding="utf-8")
        # autoescape: names come from model files, which may be hostile
        jinja = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
        jinja.filters |= {"ratio": _ratio, "error": _error, "percent": _percent, "bar": _bar, "visible": escaped}
        page = jinja.from_string(text).render(
            report=self,
            criterion=CRITERION,
            limit=LIMIT,
            limit_at=_bar(LIMIT),
            ticks=[(label, _bar(value)) for label, value in _TICKS],
            extra_sections=extra_sections,
        )
        if path is not None:
            with open(path, "w", encoding="utf-8") as file:
                file.write(page)
        return page

    def __str__(self) -> str:
        head = ("backend", "output", "result", "ratio", "worst slice", "source error", "error", "top-1")
        table = [head] + [
            (
                row.backend,
                row.output or "-",
                "passed" if row.passed else "FAILED",
                _ratio(row.ratio),
                f"{_ratio(row.slice_ratio)} {row.slice_name}".strip(),
                _error(row.source_error),
                _error(row.target_error),
                _percent(row.top1),
            )
            for row in self.rows
        ]
        widths = [max(len(escaped(line[i])) for line in table) for i in range(len(head))]
        lines = ["  ".join(f"{escaped(c):<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in table]
        reasons: dict[str, list[str]] = {}  # said once, for all the comparisons that failed for it
        for row in self.rows:
            if not row.passed:
                text = row.reason + (f" (inputs: {row.probe})" if row.probe else "")
                reasons.setdefault(text, []).append(f"{row.backend} {row.output}".strip())
        lines += [escaped(f"{', '.join(where)}: {text}") for text, where in reasons.items()]
        lines += [f"note: {escaped(note)}" for note in self.notes]
        verdict = "passed" if self.passed else "FAILED"
        lines.append(escaped(f"{verdict}: {self.inputs_tried()}, compared with {self.source} in float64"))
        return "\n".join(lines)


def describe_model(model: Model) -> dict[str, Any]:
    signature = model.require_signature()
    return {
        "name": str(model.metadata.get("name", type(model.layer).__name__)),
        "source": str(model.metadata.get("source", "")),
        "inputs": [str(spec) for spec in signature.inputs],
        "outputs": [str(spec) for spec in signature.outputs],
        "parameters": trees.count(model.params),
        "states": trees.count(model.states),
        "bytes": trees.size_in_bytes(model.params) + trees.size_in_bytes(model.states),
    }


def environment() -> dict[str, str]:
    """Versions of Python, the platform, and the packages that were imported."""
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **dict(_versions(name for name in _PACKAGES if name in sys.modules)),
    }


def _versions(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:  # a source tree on the path
            yield name, "not installed as a package"


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}" if value < 100 else f"{value:.1e}"


def _error(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1e}"


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.4g} %"


def _bar(value: float) -> float:
    """Where a ratio lies on the logarithmic axis of the bars, in percent."""
    low, high = (math.log10(x) for x in _BAR_LIMITS)
    if math.isnan(value):
        return 0.0
    at = (math.log10(min(max(value, _BAR_LIMITS[0]), _BAR_LIMITS[1])) - low) / (high - low)
    return round(100 * at, 2)
