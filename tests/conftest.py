"""What holds for all tests: one process, one thread, the CPU, the same examples on every run.

The variables are set before any framework is imported. Who sets them by hand (JAX_PLATFORMS=cuda) wins.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile

import hypothesis
import pytest

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "INTERLUX_CACHE" not in os.environ:  # tests leave nothing in the user's cache, and find nothing there
    os.environ["INTERLUX_CACHE"] = tempfile.mkdtemp(prefix="interlux-tests-")
    atexit.register(shutil.rmtree, os.environ["INTERLUX_CACHE"], ignore_errors=True)

# No deadline: the first example pays for compilation. Derandomized: a failure in CI is a failure here.
hypothesis.settings.register_profile("interlux", deadline=None, derandomize=True)
hypothesis.settings.load_profile("interlux")


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Hold torch to one thread, where a test has imported it; OMP_NUM_THREADS covers the import inside a test."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
