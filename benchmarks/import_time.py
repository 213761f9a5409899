"""How long `import interlux` and `interlux --help` take, in processes of their own, against an empty Python.

The runs alternate, so that a busy minute falls on all alike. The wall time depends on what else the machine does; the
CPU time (user and system) depends on it less.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 15
ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import numpy": ["-c", "import numpy"],
    "import interlux": ["-c", "import interlux"],
    "interlux --help": ["-m", "interlux", "--help"],
}
BUDGETS = {"import interlux": 0.15, "interlux --help": 0.3}  # seconds of wall time, on an idle machine


def once(arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one process."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=env, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> int:
    """Prints medians, and what is over its budget even in the fastest run (on a busy machine everything is)."""
    for arguments in COMMANDS.values():  # fills the caches of bytecode and files
        once(arguments)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):
        for name, arguments in COMMANDS.items():
            found[name].append(once(arguments))
    print(f"{'seconds':<18}{'median':>8}{'least':>8}{'CPU':>8}{'budget':>8}")
    over = []
    for name, runs in found.items():
        walls, cpus = zip(*runs, strict=True)
        budget = BUDGETS.get(name)
        print(
            f"{name:<18}{statistics.median(walls):>8.3f}{min(walls):>8.3f}{statistics.median(cpus):>8.3f}"
            f"{'' if budget is None else budget:>8}"
        )
        over += [name] if budget is not None and min(walls) > budget else []
    for name in over:
        print(f"{name}: over its budget")
    return 0


if __name__ == "__main__":
    sys.exit(main())
