"""How the import from PyTorch grows with the number of layers: it should be linear.

Chains of Linear and ReLU, 100 to 400 pairs. `export` is torch.export's own time, for the two modes of a module that
`from_torch` exports; `interlux` is the rest.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

LAYERS = (100, 200, 400)
RUNS = 3
WIDTH = 16


def once(layers: int) -> tuple[float, float]:
    """Seconds in torch.export, and in all."""
    import torch

    import interlux as ix

    module = torch.nn.Sequential(
        *(part for _ in range(layers) for part in (torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU()))
    ).eval()
    spent = 0.0
    original = torch.export.export

    def timed(*args: Any, **kwargs: Any) -> Any:
        nonlocal spent
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            spent += time.perf_counter() - start

    torch.export.export = timed
    try:
        start = time.perf_counter()
        ix.from_torch(module, (torch.randn(2, WIDTH),))
        return spent, time.perf_counter() - start
    finally:
        torch.export.export = original


def main() -> int:
    """Prints medians, in total and per layer, and how the time per layer grows with the length."""
    once(2)  # imports, and torch's own caches
    found: dict[int, list[tuple[float, float]]] = {n: [] for n in LAYERS}
    for _ in range(RUNS):
        for layers in LAYERS:
            found[layers].append(once(layers))
    print(f"{'layers':>6}{'export s':>10}{'interlux s':>12}{'export ms/layer':>17}{'interlux ms/layer':>19}")
    own = {}
    for layers, runs in found.items():
        export = statistics.median(e for e, _ in runs)
        rest = statistics.median(t - e for e, t in runs)
        own[layers] = rest / layers
        print(f"{layers:>6}{export:>10.2f}{rest:>12.2f}{1e3 * export / layers:>17.2f}{1e3 * rest / layers:>19.2f}")
    growth = own[LAYERS[-1]] / own[LAYERS[0]]
    print(f"interlux's time per layer, {LAYERS[-1]} layers against {LAYERS[0]}: {growth:.2f} times (1 is linear)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
