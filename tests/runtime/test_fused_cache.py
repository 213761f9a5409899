"""Compiled objects on disk: found again, never half, never somebody else's, never too many."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("llvmlite")

from interlux.runtime.fused import cache
from interlux.runtime.fused.cache import ObjectCache, default_folder, key_of
from interlux.runtime.fused.target import host, named

KEY = bytes(range(32))
OBJECT = bytes(range(256)) * 40


def file_of(store: ObjectCache, key: bytes = KEY) -> Path:
    assert store.folder is not None
    return store.folder / f"{key.hex()}.o"


def test_found_again(tmp_path: Path) -> None:
    store = ObjectCache(tmp_path / "a" / "b")
    assert store.get(KEY) is None
    assert store.put(KEY, OBJECT, {"arena": 64, "names": ["x"]})
    found = ObjectCache(tmp_path / "a" / "b").get(KEY)
    assert found is not None and found.object == OBJECT and found.facts == {"arena": 64, "names": ["x"]}
    assert found.data.ctypes.data % 64 == 0
    assert store.get(bytes(32)) is None
    assert file_of(store).stat().st_mode & 0o077 == 0 and file_of(store).parent.stat().st_mode & 0o077 == 0
    store.clear()
    assert store.get(KEY) is None


def test_damage(tmp_path: Path) -> None:
    """Whatever byte is changed or missing, the file counts as absent and goes."""
    store = ObjectCache(tmp_path)
    store.put(KEY, OBJECT, {"a": 1})
    whole = file_of(store).read_bytes()
    places = [0, 10, 25, 40, 60, 90, 110, 130, len(whole) // 2, len(whole) - 1]
    damaged = [whole[:p] + bytes([whole[p] ^ 1]) + whole[p + 1 :] for p in places]
    damaged += [whole[:n] for n in (0, 1, 24, 60, 103, 104, 200, len(whole) - 1)] + [whole + b"\0", b"\0" * len(whole)]
    for raw in damaged:
        file_of(store).write_bytes(raw)
        file_of(store).chmod(0o600)
        assert store.get(KEY) is None
        assert not file_of(store).exists()
    assert store.put(KEY, OBJECT) and store.get(KEY) is not None


def test_another_keys_file(tmp_path: Path) -> None:
    store = ObjectCache(tmp_path)
    store.put(KEY, OBJECT)
    other = bytes(32)
    file_of(store).rename(file_of(store, other))
    assert store.get(other) is None


def test_files_that_others_may_write_are_not_executed(tmp_path: Path) -> None:
    store = ObjectCache(tmp_path / "objects")
    store.put(KEY, OBJECT)
    file_of(store).chmod(0o666)
    assert store.get(KEY) is None
    file_of(store).chmod(0o600)
    assert store.get(KEY) is not None
    (tmp_path / "objects").chmod(0o777)
    assert store.get(KEY) is None and not store.put(KEY, OBJECT)
    (tmp_path / "objects").chmod(0o700)
    file_of(store).rename(tmp_path / "elsewhere")
    file_of(store).symlink_to(tmp_path / "elsewhere")
    assert store.get(KEY) is None


def test_nowhere_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "inside", tmp_path / "file"):
        store = ObjectCache(folder)
        assert not store.put(KEY, OBJECT) and store.get(KEY) is None
    monkeypatch.setenv("INTERLUX_CACHE", "")
    assert default_folder() is None
    assert not ObjectCache().put(KEY, OBJECT) and ObjectCache().get(KEY) is None


def test_a_full_disk_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", full)
    store = ObjectCache(tmp_path)
    assert not store.put(KEY, OBJECT)
    assert not list(tmp_path.iterdir())


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERLUX_CACHE", str(tmp_path))
    assert default_folder() == tmp_path / "fused"
    monkeypatch.delenv("INTERLUX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache.sys, "platform", "linux")
    assert default_folder() == tmp_path / "interlux" / "fused"


def test_bound(tmp_path: Path) -> None:
    store = ObjectCache(tmp_path, limit=60_000)
    keys = [bytes([i]) * 32 for i in range(12)]
    for i, key in enumerate(keys):
        store.put(key, OBJECT)
        os.utime(file_of(store, key), (1000 + i, 1000 + i))
        if i >= 1:
            assert store.get(keys[0]) is not None  # read again: it becomes the youngest
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) <= 60_000
    assert store.get(keys[-1]) is not None and store.get(keys[0]) is not None and store.get(keys[1]) is None
    assert not store.put(KEY, bytes(60_000))


def test_keys() -> None:
    text = "define void @run() { ret void }"
    key = key_of(host(), text)
    assert key == key_of(host(), text) and len(key) == 32
    others = [key_of(host(), text + " "), key_of(named("scalar"), text), key_of(host(), text, "x"), key_of(host(), b"")]
    assert len({key, *others}) == 5
    assert key_of(host(), "ab", "c") != key_of(host(), "a", "bc")


def test_keys_follow_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of(host(), "text")
    monkeypatch.setattr(cache, "engine_version", lambda: "another")
    assert key_of(host(), "text") != key


def test_many_writers_and_readers(tmp_path: Path) -> None:
    stores = [ObjectCache(tmp_path, limit=100_000) for _ in range(6)]
    keys = [bytes([i]) * 32 for i in range(12)]
    wrong: list[bytes] = []

    def work(store: ObjectCache, number: int) -> None:
        for round in range(20):
            key = keys[(number + round) % len(keys)]
            store.put(key, key * 300)
            found = store.get(keys[round % len(keys)])
            if found is not None and found.object != keys[round % len(keys)] * 300:
                wrong.append(key)

    workers = [threading.Thread(target=work, args=(store, i)) for i, store in enumerate(stores)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong and not list(tmp_path.glob("*.tmp"))


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    program = (
        "from interlux.runtime.fused import native, llvm\n"
        "import sys\n"
        "made = []\n"
        "compile, native.assemble = native.assemble, lambda *a: made.append(1) or compile(*a)\n"
        "native.library().address('dispatch')\n"
        "print(len(made))\n"
    )
    environment = {**os.environ, "INTERLUX_CACHE": str(tmp_path), "PYTHONPATH": os.getcwd()}
    counts = [
        subprocess.run(
            [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert counts == ["1", "0"]
