"""Runs all benchmarks: `python -m benchmarks [name ...]`."""

from __future__ import annotations

import importlib
import sys

NAMES = ("import_time", "from_torch_scaling")


def main() -> int:
    chosen = sys.argv[1:] or NAMES
    unknown = [name for name in chosen if name not in NAMES]
    if unknown:
        print(f"benchmarks: there is no {unknown[0]!r}; choose from {', '.join(NAMES)}", file=sys.stderr)
        return 2
    codes = []
    for name in chosen:
        print(f"== {name}", flush=True)
        codes.append(importlib.import_module(f"benchmarks.{name}").main())
        print()
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
