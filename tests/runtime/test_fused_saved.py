"""Compiled models on disk: found by what they are, and every difference makes another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llvmlite")

import interlux as ix
from interlux.ir.foreign import Kind
from interlux.ir.layer import Layer
from interlux.ir.layers import Chain, Dense, relu, tanh
from interlux.runtime.fused.cache import ObjectCache
from interlux.runtime.fused.entry import Entry
from interlux.runtime.fused.llvm import assemble
from interlux.runtime.fused.saved import Built, key_of_layer, saved
from interlux.runtime.fused.target import host, named
from tests.runtime.fused_functions import affine_text

KINDS = (Kind((4,), np.dtype(np.float32)),)


def key(layer: Layer, seed: int = 0, **changes: Any) -> bytes | None:
    params, states = ix.setup(layer, seed)
    given = {"target": host(), "params": params, "states": states, "inputs": KINDS, **changes}
    return key_of_layer(given["target"], layer, given["params"], given["states"], given["inputs"])


def test_keys_tell_models_apart() -> None:
    layer = Chain(Dense(4, 3, activation=relu), Dense(3, 2))
    params, states = ix.setup(layer, 0)
    changed, moved = ({n: dict(t) for n, t in params.items()} for _ in range(2))
    changed["0"]["bias"] = np.nextafter(params["0"]["bias"], np.float32(9))
    moved["1"] = {"bias": params["1"]["bias"], "weight": params["1"]["weight"].reshape(3, 2)}
    keys = [
        key(layer),
        key(layer, 1),
        key(Chain(Dense(4, 3, activation=tanh), Dense(3, 2))),
        key(Chain(Dense(4, 3, activation=relu), Dense(3, 2, in_first=True)), params=params),
        key(layer, params=changed),
        key(layer, params=moved),
        key(layer, states={"x": np.zeros(1)}),
        key(layer, params={}, states=params),
        key(layer, inputs=(Kind((4,), np.dtype(np.float64)),)),
        key(layer, inputs=(Kind((2, 2), np.dtype(np.float32)),)),
        key(layer, target=named("scalar")),
        key_of_layer(host(), layer, params, states, KINDS, "option"),
    ]
    assert None not in keys and len(set(keys)) == len(keys)
    assert key(layer) == key(Chain(Dense(4, 3, activation=relu), Dense(3, 2)))
    turned = {n: {m: np.asfortranarray(a) for m, a in t.items()} for n, t in params.items()}
    assert key(layer) == key(layer, params=turned)


def test_what_cannot_be_compared_has_no_key() -> None:
    assert key_of_layer(host(), Dense(4, 3), {}, {}, KINDS, object()) is None
    assert key_of_layer(host(), Dense(4, 3), {"a": np.array([None])}, {}, KINDS) is None


def built(made: list[int]) -> Built:
    made.append(1)
    kinds = (Kind((4,), np.dtype(np.float32)),)
    return Built(assemble(affine_text(), host()), kinds, kinds, np.array([2, 1], np.float32).view(np.uint8), 64, 32)


def test_made_once(tmp_path: Path) -> None:
    made: list[int] = []
    objects, name = ObjectCache(tmp_path), bytes(32)
    functions = [saved(name, lambda: built(made), objects) for _ in range(3)]
    assert made == [1]
    x = np.ones((5, 4), np.float32)
    for function in functions:
        assert (Entry(function).call(x)[0] == 3).all()
        assert function.nanoseconds and (function.arena, function.grain) == (64, 32)
    assert functions[1].owner is functions[0].owner
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert (Entry(saved(name, lambda: built(made), objects)).call(x)[0] == 3).all()
    assert made == [1, 1]
    saved(None, lambda: built(made), objects)
    assert made == [1, 1, 1] and len(list(tmp_path.iterdir())) == 1


def test_parameters_of_their_own(tmp_path: Path) -> None:
    """Two models with the same code share it and nothing else."""
    objects = ObjectCache(tmp_path)
    one = saved(bytes(32), lambda: built([]), objects)
    three = np.array([3, 0], np.float32).view(np.uint8)
    other = saved(b"1" * 32, lambda: replace(built([]), parameters=three), objects)
    assert one.address == other.address
    x = np.ones((5, 4), np.float32)
    assert (Entry(one).call(x)[0] == 3).all() and (Entry(other).call(x)[0] == 3).all()
    assert (Entry(one).call(2 * x)[0] == 5).all() and (Entry(other).call(2 * x)[0] == 6).all()
