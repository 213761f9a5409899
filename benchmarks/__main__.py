"""Runs the benchmarks: `python -m benchmarks [name ...]`, the short ones by default; or one, with its options."""

from __future__ import annotations

import importlib
import itertools
import sys

SHORT = ("import_time", "from_torch_scaling")
WITH_OPTIONS = ("memory", "onnx_on_jax", "from_torch", "fused", "fused_costs", "fused_training")
NAMES = (*SHORT, *WITH_OPTIONS)


def main() -> int:
    arguments = sys.argv[1:]
    chosen = list(itertools.takewhile(lambda a: not a.startswith("-"), arguments))
    options = arguments[len(chosen) :]
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        print(f"benchmarks: there is no {unknown[0]!r}; choose from {', '.join(NAMES)}", file=sys.stderr)
        return 2
    if options and (len(chosen) != 1 or chosen[0] not in WITH_OPTIONS):
        print(f"benchmarks: options go behind one name, of {', '.join(WITH_OPTIONS)}", file=sys.stderr)
        return 2
    codes = []
    for name in chosen or SHORT:
        print(f"== {name}", flush=True)
        main_of = importlib.import_module(f"benchmarks.{name}").main
        codes.append(main_of(options) if name in WITH_OPTIONS else main_of())
        print()
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
